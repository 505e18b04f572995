"""What a run costs: parameters, multiply-adds, clips a second, memory, time and energy.

Multiply-adds (MACs) of a forward pass of one clip are counted by torch's flop counter (a flop is half of one) over the
network without its spectrogram: products of matrices, attention, convolutions, LSTMs. Our own operators count as they
compute: the selective scan 4 for each of directions x tokens x inner width x states (step * A, drive * B, decay * h +
..., C * h), its exponential not among them, Mamba-2's recurrence the last 3 of these, and the convolution before it its
taps for each of directions x tokens x inner width. Sums, norms and activations are not counted. A training step counts
as three forward passes, or as one while the encoder is frozen; one of pretraining as three, its heads not counted.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssamba.comparison.runs import Run
from ssamba.errors import UserError
from ssamba.models.checkpoint import described_encoder
from ssamba.models.heads import AudioClassifier, TokenClassifier
from ssamba.models.settings import ClassifierSettings, read_config

_SCAN_MACS = 4
_SSD_MACS = 3  # drive * B, decay * h + ..., C * h
_TRAINING = 3  # forward passes that a training step counts as
Shape = Sequence[int]


def _scan_flops(u: Shape, delta: Shape, a: Shape, *_: Any, **__: Any) -> int:
    """Of `ssamba::scan`: u (K, B, L, E), A (K, E, N)."""
    directions, batch, tokens, width = u
    return 2 * _SCAN_MACS * directions * batch * tokens * width * a[-1]


def _ssd_flops(x: Shape, step: Shape, log_decay: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Of `ssamba::ssd`: x (B, L, E), B (2, B, L, N)."""
    batch, tokens, width = x
    return 2 * _SSD_MACS * 2 * batch * tokens * width * b[-1]


def _conv_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of `ssamba::conv`: x (B, L, E), weight (K, E, W)."""
    batch, tokens, width = x
    return 2 * weight[0] * batch * tokens * width * weight[-1]


def _lstm_flops(x: Shape, of_input: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
    """Of one direction of torch's LSTM: x (L, B, D), its weights (4 N, D) and (4 N, N)."""
    tokens, batch, _width = x
    return 2 * tokens * batch * (of_input[0] * of_input[1] + of_state[0] * of_state[1])


def count_macs(module: nn.Module, frames: int, mel_bins: int) -> int:
    """Of a module made under `FakeTensorMode`, for one spectrogram (1, frames, mel_bins)."""
    own = {
        torch.ops.ssamba.scan: _scan_flops,
        torch.ops.ssamba.ssd: _ssd_flops,
        torch.ops.ssamba.conv: _conv_flops,
        torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=own)
    # Attention as the products that it is made of: of the fused kernels the counter knows those of GPUs alone.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(torch.empty(1, frames, mel_bins))
    return int(counter.get_total_flops()) // 2


def model_macs(config: Mapping[str, Any], max_length: int | None = None) -> int:
    """Of a forward pass of one clip of the model that a config.json describes.

    Args:
        max_length: frames of other clips, for which its encoder alone is counted.
    """
    described = {**config, "max_length": max_length or config["max_length"]}
    with FakeTensorMode():
        encoder = described_encoder(described, "cpu")
        module: nn.Module = encoder
        if max_length is None and "id2label" in config:
            head = len(config["id2label"]), config["pooling"]
            rest = config["head_norm"], config.get("segments", ClassifierSettings.segments)
            hop = config.get("hop_columns")
            module = (
                AudioClassifier(encoder, *head, *rest) if hop is None else TokenClassifier(encoder, *head, hop, *rest)
            )
        return count_macs(module.eval(), described["max_length"], described["num_mel_bins"])


class Costs(NamedTuple):
    """Of a run, None of what is not known: parameters; MACs of a clip; clips a second in training; the most memory of
    its GPUs, without any of its first process, in bytes; hours of training, and of the pretraining that its weights are
    from (0 from scratch); energy in J; MACs of all training, with that of pretraining."""

    parameters: float | None
    macs: float | None
    clips_per_second: float | None
    peak_memory_bytes: float | None
    hours: float | None
    pretraining_hours: float | None
    energy_joules: float | None
    training_macs: float | None


def run_costs(run: Run, known: dict[str, int]) -> Costs:
    """What a run cost. known: a cache of MACs by the description of the model, which this fills."""
    record, recipe, origin = run.record, run.recipe, run.record.get("origin")
    rates = [row["samples_per_second"] for row in run.history if "samples_per_second" in row]
    peaks = dict(record.get("peak_memory_bytes") or {})
    memory = max((peak for name, peak in peaks.items() if name != "process"), default=0) or peaks.get("process")
    seconds = record.get("training_seconds")
    config = _config(run)
    macs = training = before = None
    if config is not None:
        macs = _counted(config, None, known)
        steps = record["steps"]
        frozen = min(steps, recipe["task.freeze_steps"]) if recipe["model.pretrained"] else 0
        passes = steps if recipe["task.freeze_encoder"] else frozen + _TRAINING * (steps - frozen)
        training = float(passes * macs * recipe["data.batch_size"])
    if recipe["model.pretrained"] is None:
        before = 0.0
    elif origin is None:
        training = None
    else:
        before = origin["training_seconds"] / 3600
        if config is not None and training is not None:
            frames, clips = (origin["recipe"].get(key) for key in ("audio.max_length", "data.batch_size"))
            if isinstance(frames, int) and isinstance(clips, int) and frames >= config["tshape"]:
                training += float(_TRAINING * _counted(config, frames, known) * origin["steps"] * clips)
            else:
                training = None
    hours = None if seconds is None else seconds / 3600
    speed, energy = statistics.median(rates) if rates else None, record.get("energy_joules")
    return Costs(record.get("parameters"), macs, speed, memory, hours, before, energy, training)


def _config(run: Run) -> dict[str, Any] | None:
    """The config.json of its model; None where that is gone."""
    if run.folder is None:
        return None
    try:
        return read_config(run.folder)
    except UserError:
        return None


def _counted(config: Mapping[str, Any], max_length: int | None, known: dict[str, int]) -> int:
    name = repr((sorted((key, str(value)) for key, value in config.items() if key != "label2id"), max_length))
    if name not in known:
        known[name] = model_macs(config, max_length)
    return known[name]


def mean_costs(costs: Sequence[Costs]) -> Costs:
    """The costs of a group: means, and the maximum of memory; None for what is not known of every run."""
    columns = [None if None in column else column for column in zip(*costs, strict=True)]
    means = [None if column is None else statistics.mean(column) for column in columns]
    mean = Costs(*means)
    memory = columns[Costs._fields.index("peak_memory_bytes")]
    return mean._replace(peak_memory_bytes=None if memory is None else max(memory))
