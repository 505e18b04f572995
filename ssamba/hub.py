"""A complete model: waveforms or files in, hidden states and logits out, saved and loaded as the Hugging Face Hub
keeps models.

Shapes: B batch, T frames, M mel bins, F and P grid sizes in frequency and time, D width, C classes.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.features import FeatureExtractor
from ssamba.files import write_json
from ssamba.models.checkpoint import load_model, save_model
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, parameter_count
from ssamba.models.pools import DEFAULT_POOLING, Pool, build_pool
from ssamba.models.record import RECORD_NAME, read_record, split_text
from ssamba.models.settings import AudioSettings, ClassifierSettings, model_folder
from ssamba.printable import markdown_code, markdown_text

log = logging.getLogger(__name__)

_FILES = ["model.safetensors", "config.json", "preprocessor_config.json", "run.json"]


class SsambaOutput(NamedTuple):
    """logits: float32 (B, C), or of a classifier of hops (B, N, C), zeros after a clip's last hop; None for a model
    without a classifier; hidden_states: for each layer asked for
    (B, F, P, D), zeros after a clip's last column; pooled: for each of them a vector a clip, (B, size of the pool);
    columns: int64 (B,), how many of the P a clip has, those of its padding included."""

    logits: Tensor | None
    hidden_states: list[Tensor]
    pooled: list[Tensor]
    columns: Tensor


class SsambaModel(nn.Module, PyTorchModelHubMixin):
    """A pretrained or fine-tuned network with its feature extractor: every encoder, clips of any length.

    `SsambaModel.from_pretrained(folder or name on the Hub)`, `.save_pretrained(folder)`, `.push_to_hub(name)`.

    Args:
        network: as `load_model` builds it.
        audio: what its spectrograms are.
        classifier: what its classes are; None for a pretrained model.
        record: the run.json of the run that made it, for its model card; None where there was none.
    """

    def __init__(
        self,
        network: MaskedPatchModel | AudioClassifier,
        audio: AudioSettings,
        classifier: ClassifierSettings | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.audio, self.classifier, self.record = network, audio, classifier, record
        arguments = network.encoder.arguments
        self.feature_extractor = FeatureExtractor(
            audio, arguments["num_mel_bins"], arguments["max_length"], arguments["tshape"]
        )

    @property
    def num_hidden_states(self) -> int:
        """How many layers can be asked for: 0 is the embedded patches, -1 what the encoder gives."""
        return self.network.encoder.stack.num_hidden_states

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.encoder.mask_token.device

    def pool(self, name: str | None = None, segments: int | None = None) -> Pool:
        """What makes a vector of a clip's tokens.

        Args:
            name: of a pool; None, or the name of a classifier's own: that one. A pretrained model has none, and
                None is `pools.DEFAULT_POOLING`.
            segments: of "segments" alone; None: the classifier's own, else 4.

        Raises:
            UserError: no such pool, segments of another pool, or one that is learned, of a model that has none.
        """
        if segments is not None and name != "segments":
            other = "no pooling is named" if name is None else f"pooling is {name}"
            raise UserError(f"segments is {segments} and {other}; expected pooling segments beside it")
        own = self.network.pool if isinstance(self.network, AudioClassifier) else None
        if own is not None and name in (None, own.name) and segments in (None, own.segments):
            return own
        encoder, count = self.network.encoder, ClassifierSettings.segments if segments is None else segments
        try:
            pool = build_pool(name or DEFAULT_POOLING, encoder.grid[0], encoder.hidden_size, count)
        except ValueError as error:
            raise UserError(str(error)) from error
        if parameter_count(pool):
            raise UserError(
                f"pooling is {name}, which is learned, and this model has none; expected another pool, or a model that "
                f"was fine-tuned with task.pooling={name}"
            )
        return pool

    def forward(
        self,
        input_values: Tensor,
        lengths: Tensor | None = None,
        own: Tensor | None = None,
        layers: Sequence[int] = (),
        pool: Pool | None = None,
    ) -> SsambaOutput:
        """Run the network on `Features`, clips of equal length together.

        Args:
            input_values: (B, T, M), normalised log-mel.
            lengths: int64 (B,), the frames of each clip that the network is to see; None: all.
            own: int64 (B,), those of them that are no padding; None: all. Padding enters no pool, but that of an
                imported classifier.
            layers: which hidden states to return, as `num_hidden_states` numbers them.
            pool: of `pooled`; None: `self.pool()`.

        Raises:
            UserError: a layer that there is not, or other mel bins than the model's.
        """
        wanted, pool = [self.layer_number(layer) for layer in layers], pool or self.pool()
        encoder, (batch, frames, bins) = self.network.encoder, input_values.shape
        patch = encoder.patch_shape
        rows = patch.grid(bins, frames)[0]
        if rows != encoder.grid[0]:
            raise UserError(
                f"input_values has {bins} mel bins; expected {encoder.arguments['num_mel_bins']}, as this model's "
                "feature extractor gives"
            )
        seen = torch.full((batch,), frames) if lengths is None else lengths.cpu()
        columns = torch.tensor([patch.grid(bins, int(length))[1] for length in seen])
        hidden = [input_values.new_zeros(batch, rows, int(columns.max()), encoder.hidden_size) for _ in wanted]
        pooled = [input_values.new_zeros(batch, pool.size) for _ in wanted]
        logits = None
        if self.classifier is not None:
            hops = [-(-int(columns.max()) // hop)] if (hop := self.classifier.hop_columns) else []
            logits = input_values.new_zeros(batch, *hops, len(self.classifier.labels))
        for length in seen.unique().tolist():
            places = torch.nonzero(seen == length).flatten().to(input_values.device)
            clips = input_values[places, :length]
            states = encoder.hidden_states(clips) if wanted else [encoder(clips)]
            part = None if own is None else own.to(places.device)[places]
            own_columns = None if part is None else patch.own_columns(part, patch.grid(bins, length)[1])
            for index, into, vectors in zip(wanted, hidden, pooled, strict=True):
                tokens = states[index].tokens.float().unflatten(1, (rows, -1))
                into[places, :, : tokens.shape[2]] = tokens
                vectors[places] = pool(states[index], own_columns).float()
            if logits is not None and isinstance(self.network, AudioClassifier):
                answers = self.network.classify(states[-1], part).float()
                if answers.ndim == 3:
                    logits[places, : answers.shape[1]] = answers
                else:
                    logits[places] = answers
        return SsambaOutput(logits, hidden, pooled, columns)

    def layer_number(self, layer: int) -> int:
        """A layer counted from 0 on; UserError for one that there is not."""
        count = self.num_hidden_states
        if not -count <= layer < count:
            raise UserError(f"layer is {layer}; this model has {count}: 0 (the patches) to {count - 1} (its output)")
        return layer % count

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "SsambaModel":
        """Load a model folder, a run folder, or a model of the Hub.

        Args:
            options: revision, token, cache_dir, force_download, local_files_only: as in huggingface_hub;
                scan_backend: of `ssamba.ops.BACKENDS`.

        Raises:
            UserError: no such model, or weights that do not fit their config.json exactly.
        """
        place = Path(pretrained_model_name_or_path)
        scan_backend = options.pop("scan_backend", "auto")
        if not place.exists():
            download: Callable[..., str] = snapshot_download
            try:
                place = Path(download(str(pretrained_model_name_or_path), allow_patterns=_FILES, **options))
            except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
                raise UserError(
                    f"{pretrained_model_name_or_path} is neither a folder here nor a model that the Hub gives: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        folder = model_folder(place)
        saved = load_model(folder, scan_backend)
        # A run's record is beside the model's folder; save_pretrained puts it inside.
        return cls(saved.model, saved.audio, saved.classifier, _record(folder)).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(save_directory, self.network, self.audio, self.classifier)
        if self.record is not None:
            write_json(save_directory / "run.json", self.record)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md of the folder: what the model is and, from its run's record alone, how it came about and what
        it scored there."""
        return ModelCard(_card(self))


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of the run that made a model; None where there is none, or one that cannot be used, which is logged:
    the model needs it for its card alone."""
    paths = [path for path in (folder / RECORD_NAME, folder.parent / RECORD_NAME) if path.is_file()]
    try:
        return read_record(paths[0]) if paths else None
    except UserError as error:
        log.warning("%s; the model is used without it", error)
        return None


def _card(model: SsambaModel) -> str:
    arguments, settings, record = model.network.encoder.arguments, model.classifier, model.record
    encoder = arguments["encoder"]
    data = ModelCardData(
        library_name="ssamba",
        tags=["audio", encoder],
        pipeline_tag="audio-classification" if settings else "feature-extraction",
    )
    facts = {
        "encoder": ", ".join([encoder, *(f"{name} {value}" for name, value in arguments["options"].items())]),
        "parameters": f"{parameter_count(model.network):,}",
        "input": f"{model.audio.sampling_rate} Hz, {arguments['num_mel_bins']} mel bins, {arguments['max_length']} "
        f"frames of 10 ms, patches of {arguments['fshape']} mel bins x {arguments['tshape']} frames",
    }
    if settings:
        facts["classes"] = f"{len(settings.labels)} of {markdown_text(settings.label)}"
    title = f"{markdown_text(settings.label)} of audio clips" if settings else "masked-patch audio encoder"
    lines = [f"---\n{data.to_yaml()}\n---", "", f"# {encoder}: {title}", ""]
    if record is not None:
        command = markdown_code(" ".join(record["command"]))
        facts["made by"] = f"{command} on {markdown_text(record['started'])}, seed {record['seed']}"
        facts["steps, seconds"] = f"{record['steps']:,}, {record['training_seconds']:,}"
        facts["hardware"] = markdown_text(", ".join([record["hardware"]["processor"], *record["hardware"]["gpus"]]))
        facts["versions"] = markdown_text(
            ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        )
        for name, split in record["data"].items():
            facts[f"data, {markdown_text(name)}"] = split_text(split)
    lines += [*(f"- {name}: {value}" for name, value in facts.items()), ""]
    if record is None:
        lines += ["These weights came without the record of a run, so no score is given here.", ""]
    else:
        scores = {**record["test"]} or {n: x for n, x in record["last_metrics"].items() if n.startswith("val/")}
        lines += [f"Measured by that run on its {'test' if record['test'] else 'validation'} split:", ""]
        figures = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in scores.items()}
        lines += [f"- {markdown_text(name)}: {figure}" for name, figure in figures.items()]
    lines += [
        "",
        "```python",
        "from ssamba import SsambaModel",
        "",
        'model = SsambaModel.from_pretrained("this folder, or its name on the Hub")',
        'features = model.feature_extractor(["recording.wav"])',
        "logits, hidden_states, pooled, columns = model(*features, layers=[-1])",
        "```",
        "",
    ]
    return "\n".join(lines)
