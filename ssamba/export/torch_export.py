"""A classifier as a program: waveforms to logits in one file, which needs no recipe, no config and none of this
package's models. `ssamba.export.program` loads it.

Shapes: B batch, S samples of a clip, C classes.
"""

import copy
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ssamba.audio import LogMel, samples_for
from ssamba.errors import UserError
from ssamba.export.program import DESCRIPTION, ClipProblem, Description
from ssamba.files import check_out, written_beside
from ssamba.hub import SsambaModel
from ssamba.models.heads import AudioClassifier, TokenClassifier


class _ClipClassifier(nn.Module):
    """What `SsambaModel` computes of recordings no longer than a clip, without a step that depends on their lengths."""

    def __init__(self, log_mel: LogMel, network: AudioClassifier, repeat: bool) -> None:
        super().__init__()
        self.log_mel, self.network, self.repeat = log_mel, network, repeat

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """waveforms (B, S), lengths (B,) -> logits (B, C)."""
        if self.repeat:
            samples = torch.arange(waveforms.shape[1], device=waveforms.device)
            waveforms = waveforms.gather(1, samples % lengths.unsqueeze(1))
            lengths = torch.full_like(lengths, waveforms.shape[1])
        logits: Tensor = self.network(self.log_mel(waveforms, lengths), self.log_mel.frames(lengths))
        return logits


def export_program(model: SsambaModel) -> ExportedProgram:
    """A classifier as a graph of torch's operators, for any batch size and one clip length, on the CPU.

    The graph takes waveforms, float32 (B, S) at the model's sampling rate with S = samples_for(max_length), and
    lengths, int64 (B,), the samples of each clip that are its own, at least those of a patch's frames. It fills up what
    is shorter as in training, computes the spectrogram and gives logits, float32 (B, C), those of
    `model(*model.feature_extractor(...))`. Recordings longer than a clip are the caller's to cut.

    An encoder that scans becomes calls of `ssamba::scan`, `ssamba::ssd` and `ssamba::conv`, which `import ssamba.ops`
    registers; with the scan backend "auto" these choose one where they run. Others need torch alone. Of LSTMs torch
    traces each token, which takes minutes for clips of many.

    Raises:
        UserError: a model without a classifier, or one whose short clips are left short.
    """
    network = model.network
    if model.classifier is None or not isinstance(network, AudioClassifier):
        raise UserError("a pretrained model says nothing of a clip; expected a fine-tuned one, with a classifier")
    if isinstance(network, TokenClassifier):
        raise UserError("this model answers hop by hop; expected one that says something of a clip as a whole")
    if model.audio.short == "keep":
        raise UserError("this model leaves short clips short; expected pad or repeat, a program has one clip length")
    # A copy: the program shares no weights, needs no gradients, and is made on the CPU wherever the model is.
    extractor = model.feature_extractor
    whole = copy.deepcopy(_ClipClassifier(extractor.log_mel, network, model.audio.short == "repeat"))
    whole.cpu().eval().requires_grad_(False)
    samples = samples_for(extractor.max_length, model.audio.sampling_rate)
    example = torch.zeros(2, samples), torch.full((2,), samples)  # of 1 clip, 1 would be taken for a constant
    batch = Dim("batch", min=1)
    with warnings.catch_warnings():
        # torch's LSTM has a list of its weights beside them, which the export exchanges for a while.
        warnings.filterwarnings("ignore", message=r"The tensor attributes?[^\n]*\._flat_weights\[")
        program = torch.export.export(whole, example, dynamic_shapes=({0: batch}, {0: batch}))
    program.example_inputs = None  # they would lie in the file
    return program


def save_program(path: Path, model: SsambaModel) -> None:
    """Write `export_program(model)` with its `Description` as JSON to a .pt2, beside its place and then renamed.

    `ssamba.export.program.load_program` loads it. So does torch alone, if the encoder does not scan:
    torch.export.load(path, extra_files=held) with held = {"ssamba.json": ""} fills in the description.

    Raises:
        UserError: as `export_program`, or a file that cannot be written.
    """
    program, settings, extractor = export_program(model), model.classifier, model.feature_extractor
    assert settings is not None
    rate = model.audio.sampling_rate
    description = Description(
        settings.labels,
        settings.label,
        cast(ClipProblem, settings.problem_type),
        rate,
        samples_for(extractor.max_length, rate),
        samples_for(extractor.min_length, rate),
        torch.__version__,
    )
    # In memory first: torch ends the process if the disk has no room for what it writes there itself.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={DESCRIPTION: json.dumps(asdict(description))})
    with written_beside(path) as beside:
        beside.write_bytes(content.getbuffer())


def export_torch(model_path: str | Path, out: Path, overwrite: bool = False) -> None:
    """Write a fine-tuned model's or run's folder, or a model of the Hub, as a program.

    Raises:
        UserError: `out` is no new .pt2 file (one is replaced with `overwrite`), no model, or as `save_program`.
    """
    if out.suffix != ".pt2":
        raise UserError(f"{out} is to be a program; expected a name that ends in .pt2, as torch.export.load does")
    check_out(out, overwrite)
    save_program(out, SsambaModel.from_pretrained(model_path))
