"""SSAMBA beside the original's structure and beside SSAST, its growth with the clip, and what was asked of it.

    python benchmarks/encoders.py [--parts original ssast scaling] [--size tiny] [--longest FRAMES] [--rounds 5]

original  the same parameters run as SSAMBA's authors run theirs where there is no GPU: tokens flipped around every
          second layer and every backward direction, channels before tokens, the loop of benchmarks/scan.py, one encoder
          pass for each objective. Forward, and joint training steps with AdamW; one of the original's takes many
          minutes, so it is made --original-steps times without warming up, 0 for never.
ssast     SSAST of the same size with fused and with plain attention, from 1,024 to 16,384 frames: forward, and forward
          and backward of the mean square of the output.
scaling   all of these from 2,048 to 65,536 frames (SSAST up to 16,384), one clip: time, and peak memory beyond the
          weights, for every size in a process of its own. Drawn beside OUT, as .png.

Clips have 128 mel bins in patches of 16 x 16. OUT keeps the parts that are not measured anew.
"""

import argparse
import functools
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scan import RESULTS, loop_scan
from ssamba.evaluation.efficiency import (
    Goal,
    goals_table,
    interleaved_times,
    median_ratio,
    peak_memory,
    seconds,
    versions,
)
from ssamba.files import write_json
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.masking import cluster_mask
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.mixer import BidirectionalMixer, Direction
from ssamba.models.ssamba import SsambaLayer, SsambaStack
from ssamba.progress import progress_bar
from ssamba.training.runs import hardware

MEL_BINS, SIDE = 128, 16
KINDS = ("ssamba", "ssast fused", "ssast plain")
# frames -> (clips, what SSAST's time with fused attention over ours was asked to be)
BESIDE_SSAST = {1024: (2, 0.8), 4096: (2, 1.0), 8192: (1, 2.0), 16384: (1, 3.0)}
SCALING = (2048, 4096, 8192, 16384, 32768, 65536)
LONGEST_FOR_SSAST = 16384
LARGEST_ATTENTION = 6 * 2**30  # bytes of attention matrices; what needs more is left out


def make_encoder(kind: str, size: str, frames: int) -> AudioEncoder:
    torch.manual_seed(0)
    family = kind.split()[0]
    return AudioEncoder(family, SIZES[family][size], MEL_BINS, frames, SIDE, SIDE, SIDE, SIDE)


def make_clips(batch: int, frames: int) -> Tensor:
    """(B, T, M)."""
    return torch.randn(batch, frames, MEL_BINS, generator=torch.Generator().manual_seed(0))


def token_count(frames: int) -> int:
    """Of SSAMBA, its class token included."""
    return (MEL_BINS // SIDE) * (frames // SIDE) + 1


# The original's structure


class OriginalStack(SsambaStack):
    """The same parameters, in the original's order of operations."""

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None, kept: Tensor | None = None) -> Tensor:
        assert hidden_states is None and kept is None
        hidden, residual = x, torch.zeros_like(x)
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            assert isinstance(first, SsambaLayer) and isinstance(second, SsambaLayer)
            ahead, residual_ahead = original_layer(first, hidden, residual)
            back, residual_back = original_layer(second, hidden.flip(1), residual.flip(1))
            hidden, residual = ahead + back.flip(1), residual_ahead + residual_back.flip(1)
        return self.norm(self.norm(hidden + residual))


def original_layer(layer: SsambaLayer, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The mixer's output and the residual, both (B, L, D)."""
    residual = hidden + residual
    return original_mixer(layer.mixer, layer.norm(residual)), residual


def original_mixer(mixer: BidirectionalMixer, x: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, D)."""
    xz = (mixer.in_proj.weight @ x.flatten(0, 1).T).unflatten(1, x.shape[:2]).transpose(0, 1)  # (B, 2 E, L)
    ahead = original_direction(mixer.ahead, xz, mixer.split)
    back = original_direction(mixer.back, xz.flip(-1), mixer.split).flip(-1)
    return F.linear((ahead + back).transpose(1, 2) / 2, mixer.out_proj.weight)


def original_direction(own: Direction, xz: Tensor, split: tuple[int, ...]) -> Tensor:
    """(B, 2 E, L) -> (B, E, L), the gate applied."""
    x, z = xz.chunk(2, dim=1)
    batch, inner, length = x.shape
    taps = own.conv.weight
    x = F.silu(F.conv1d(x, taps, own.conv.bias, padding=taps.shape[2] - 1, groups=inner)[..., :length])
    projected = F.linear(x.transpose(1, 2).flatten(0, 1), own.x_proj.weight)
    rank, b, c = projected.split(split, dim=-1)
    delta = (own.dt_proj.weight @ rank.T).unflatten(1, (batch, length)).transpose(0, 1)
    b, c = (x.unflatten(0, (batch, length)).transpose(1, 2).contiguous() for x in (b, c))
    return loop_scan(x, delta, -torch.exp(own.A_log.float()), b, c, own.D, z, own.dt_proj.bias)


def as_original(model: MaskedPatchModel) -> MaskedPatchModel:
    """A copy that computes the same numbers the original's way."""
    arguments = model.encoder.arguments
    copy = MaskedPatchModel(AudioEncoder(**arguments))
    copy.encoder.stack = OriginalStack(**arguments["options"], scan_backend="auto")
    copy.load_state_dict(model.state_dict())
    return copy


def joint_loss(model: MaskedPatchModel, clips: Tensor, *masks: Tensor) -> Tensor:
    """InfoNCE + 10 * MSE: both from one encoder pass under one mask, or a pass for each under its own."""
    said = [model(clips, mask) for mask in masks]
    contrast = info_nce(said[0].contrastive, said[0].target).loss
    return contrast + 10 * reconstruction_mse(said[-1].reconstruction, said[-1].target)


def joint_step(model: MaskedPatchModel, passes: int, clips: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    grid = model.encoder.grid
    hidden = grid[0] * grid[1] * 400 // 512  # the papers' share
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        masks = [cluster_mask(*grid, hidden, [generator] * len(clips)) for _ in range(passes)]
        joint_loss(model, clips, *masks).backward()
        optimizer.step()

    return step


def compare_original(size: str, frames: int, rounds: int, original_steps: int) -> tuple[dict[str, Any], list[Goal]]:
    clips = make_clips(2, frames)
    ours = MaskedPatchModel(make_encoder("ssamba", size, frames))
    original = as_original(ours)
    encoders = {"original": original.encoder, "ours": ours.encoder}
    functions = {name: functools.partial(infer, encoder, clips) for name, encoder in encoders.items()}
    forward = interleaved_times(functions, rounds, f"forward, {frames} frames")
    result: dict[str, Any] = {"frames": frames, "batch": len(clips), "forward_seconds": forward}
    goals = [Goal("forward, original / ours", ">=", 20, median_ratio(forward["original"], forward["ours"]))]
    if original_steps:
        step = interleaved_times({"ours": joint_step(ours, 1, clips)}, rounds, "joint step")
        two_passes, step["original"] = joint_step(original, 2, clips), []
        with progress_bar(original_steps, "step", "the original's joint step") as bar:
            for _ in range(original_steps):
                step["original"].append(seconds(two_passes))
                bar.update()
        result["joint_step_seconds"] = step
        ratio = statistics.median(step["original"]) / statistics.median(step["ours"])
        goals.append(Goal("joint training step, original / ours", ">=", 50, ratio))
    return result, goals


# SSAST, and growth with the clip


@torch.inference_mode()
def infer(encoder: AudioEncoder, clips: Tensor) -> None:
    encoder(clips)


def differentiate(encoder: AudioEncoder, clips: Tensor) -> None:
    """Forward and backward; what they leave is freed."""
    encoder(clips).tokens.square().mean().backward()
    encoder.zero_grad()


def attending(kind: str, function: Callable[[], None]) -> None:
    """Call with the attention that `kind` names."""
    with sdpa_kernel(SDPBackend.MATH) if kind == "ssast plain" else nullcontext():
        function()


def make_runs(kind: str, size: str, frames: int, batch: int) -> dict[str, Callable[[], None]]:
    """forward and step, on an encoder and clips that they share; of plain attention what LARGEST_ATTENTION allows."""
    encoder, clips = make_encoder(kind, size, frames), make_clips(batch, frames)
    runs = {
        "forward": functools.partial(infer, encoder, clips),
        "step": functools.partial(differentiate, encoder, clips),
    }
    if kind == "ssast plain":
        options = SIZES["ssast"][size]
        matrices = 4 * batch * options["num_attention_heads"] * token_count(frames) ** 2
        # Backward needs those of all layers.
        needed = {"forward": matrices, "step": matrices * options["num_hidden_layers"]}
        runs = {name: run for name, run in runs.items() if needed[name] <= LARGEST_ATTENTION}
    return {name: functools.partial(attending, kind, run) for name, run in runs.items()}


Times = dict[str, dict[str, list[float]]]


def times_of(kinds: tuple[str, ...], size: str, frames: int, batch: int, rounds: int) -> Times:
    """forward and step -> kind -> seconds of every round; says what is left out."""
    runs = {kind: make_runs(kind, size, frames, batch) for kind in kinds}
    times = {}
    for name in ("forward", "step"):
        chosen = {kind: runs[kind][name] for kind in kinds if name in runs[kind]}
        times[name] = interleaved_times(chosen, rounds, f"{name}, {frames} frames")
        for kind in kinds:
            if kind not in chosen:
                print(
                    f"{kind}, {name}, {batch} x {token_count(frames):,} tokens is left out: its attention matrices "
                    f"take more than {LARGEST_ATTENTION / 2**30:g} GiB"
                )
    return times


def compare_ssast(size: str, longest: int, rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    sizes, goals = [], []
    for frames, (batch, asked) in BESIDE_SSAST.items():
        if frames <= longest:
            times = times_of(KINDS, size, frames, batch, rounds)
            sizes.append({"frames": frames, "tokens": token_count(frames), "batch": batch, "seconds": times})
            goals += [
                Goal(
                    f"{name}, {token_count(frames):,} tokens, SSAST fused / SSAMBA",
                    ">=",
                    asked,
                    median_ratio(found["ssast fused"], found["ssamba"]),
                )
                for name, found in times.items()
            ]
    return {"sizes": sizes}, goals


def memory_of(kind: str, size: str, frames: int, name: str, threads: int) -> int | None:
    """Peak bytes of a forward or step beyond weights and clip; to be called in a new process. None where unknown or
    left out."""
    torch.set_num_threads(threads)
    runs = make_runs(kind, size, frames, 1)
    if name not in runs:
        return None
    make_runs(kind, size, SIDE, 1)[name]()  # libraries take what they keep
    return peak_memory(runs[name])


def measure_scaling(size: str, longest: int, rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    sizes: list[dict[str, Any]] = []
    for frames in (frames for frames in SCALING if frames <= longest):
        kinds = KINDS if frames <= LONGEST_FOR_SSAST else KINDS[:1]
        memory: dict[str, dict[str, int | None]] = {"forward": {}, "step": {}}
        with progress_bar(2 * len(kinds), "process", f"memory, {frames} frames") as bar:
            for name, found in memory.items():
                for kind in kinds:
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                        call = process.submit(memory_of, kind, size, frames, name, torch.get_num_threads())
                        found[kind] = call.result()
                    bar.update()
        times = times_of(kinds, size, frames, 1, rounds)
        sizes.append({"frames": frames, "tokens": token_count(frames), "seconds": times, "bytes": memory})
    goals = []
    for name in ("forward", "step"):
        goals.append(Goal(f"{name}, time's exponent in tokens", "<=", 1.05, exponent(sizes, "seconds", name)))
        if all(entry["bytes"][name]["ssamba"] for entry in sizes):
            goals.append(Goal(f"{name}, memory's exponent in tokens", "<=", 1.0, exponent(sizes, "bytes", name)))
    return {"sizes": sizes}, goals


def series(sizes: list[dict[str, Any]], quantity: str, name: str, kind: str) -> list[tuple[int, float]]:
    """(tokens, median seconds or bytes) of what was measured."""
    points = []
    for entry in sizes:
        value = entry[quantity][name].get(kind)
        if value is not None:
            points.append((entry["tokens"], statistics.median(value) if quantity == "seconds" else float(value)))
    return points


def exponent(sizes: list[dict[str, Any]], quantity: str, name: str) -> float:
    """Of SSAMBA's growth: the slope of a line through the logarithms."""
    points = [(math.log(tokens), math.log(value)) for tokens, value in series(sizes, quantity, name, "ssamba")]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def draw(path: Path, sizes: list[dict[str, Any]], title: str) -> None:
    """Time and memory against tokens; a step is drawn through, a forward pass dashed."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, (quantity, unit, scale) in zip(
        figure.subplots(1, 2), (("seconds", "s", 1), ("bytes", "GiB", 2**30)), strict=True
    ):
        for number, kind in enumerate(KINDS):
            for name, dashes in (("step", "-"), ("forward", "--")):
                if points := series(sizes, quantity, name, kind):
                    tokens, values = zip(*points, strict=True)
                    axis.plot(
                        tokens,
                        [value / scale for value in values],
                        dashes,
                        color=f"C{number}",
                        marker="o",
                        markersize=4,
                        label=f"{kind}, {name}",
                    )
        ticks = [entry["tokens"] for entry in sizes]
        axis.set(
            xlabel="tokens",
            ylabel=f"{'time' if quantity == 'seconds' else 'peak memory'} ({unit})",
            xscale="log",
            yscale="log",
        )
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("original", "ssast", "scaling")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--size", default="tiny", choices=list(SIZES["ssamba"]))
    parser.add_argument("--longest", type=int, default=SCALING[-1], metavar="FRAMES", help="leave out longer clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--original-steps", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "encoders.json")
    given = parser.parse_args()
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    if "scaling" in given.parts and given.longest < SCALING[1]:
        parser.error(f"--longest is {given.longest}; scaling needs two sizes of clips, {SCALING[1]} frames")
    result = json.loads(given.out.read_text()) if given.out.exists() else {}
    every_goal = []
    for part in given.parts:
        if part == "original":
            found, goals = compare_original(given.size, min(1024, given.longest), given.rounds, given.original_steps)
        else:
            measure = compare_ssast if part == "ssast" else measure_scaling
            found, goals = measure(given.size, given.longest, given.rounds)
        every_goal += goals
        result[part] = {
            "size": given.size,
            "rounds": given.rounds,
            **found,
            "goals": [goal._asdict() for goal in goals],
            "hardware": hardware(),
            "versions": versions(),
        }
        write_json(given.out, result)  # what is measured is not lost if a later part fails
        if part == "scaling":
            processor = f"{hardware()['processor']}, {torch.get_num_threads()} threads"
            draw(given.out.with_suffix(".png"), found["sizes"], f"{given.size}, one clip, float32, {processor}")
    print(goals_table(every_goal))


if __name__ == "__main__":
    main()
