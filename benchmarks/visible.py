"""Pretraining with the visible patches alone in the encoder beside all of them, timed in turn in one process.

    python benchmarks/visible.py [--encoders ssamba ...] [--size SIZE] [--share 0.75] [--rounds 21]

frames   96 mel bins x 2 frames a patch, clips of 1.3 s at 8 kHz, 32 at a time: 64 patches each; nano
squares  16 x 16 patches, clips of 10 s (128 x 1024) at 16 kHz, 4 at a time: 512 patches each; tiny

A step is all that a step of a recipe is once its waveforms are read: spectrograms, masks, the encoder's pass, InfoNCE +
10 * MSE, gradients, clipping, AdamW. model.encode is all that differs between the two. Times are of the processor, by
one thread, so that what else is at work on the machine counts for little. Ratios are of the times of a round, their
medians with 95 % intervals by drawing rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssamba.audio import LogMel, samples_for
from ssamba.evaluation.efficiency import Goal, goals_table, versions
from ssamba.evaluation.intervals import RESAMPLES, Interval, interval
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.masking import Masking
from ssamba.models.decoder import decoder_of
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.progress import progress_bar
from ssamba.training.common import OptimizerSettings
from ssamba.training.pretraining import Pretraining
from ssamba.training.runs import hardware

ASKED = 1.9  # times the steps a second
WARMUP = 2  # rounds that are not counted


class Setting(NamedTuple):
    """The encoder's size, clips, and the patch in mel bins and frames."""

    size: str
    sampling_rate: int
    mel_bins: int
    frames: int
    patch: tuple[int, int]
    batch: int


SETTINGS = {
    "frames": Setting("nano", 8000, 96, 128, (96, 2), 32),
    "squares": Setting("tiny", 16000, 128, 1024, (16, 16), 4),
}


def make_module(encoder: str, setting: Setting, share: float, encode: str) -> Pretraining:
    """The same weights, but for the decoder's, whatever `encode` is."""
    torch.manual_seed(0)
    patch = setting.patch
    network = AudioEncoder(encoder, SIZES[encoder][setting.size], setting.mel_bins, setting.frames, *patch, *patch)
    settings = OptimizerSettings(
        learning_rate=1e-4,
        weight_decay=0.05,
        schedule="constant",
        warmup_steps=0,
        max_steps=1000,
        final_fraction=1.0,
        plateau_patience=1,
    )
    return Pretraining(
        MaskedPatchModel(network, decoder=decoder_of(network) if encode == "visible" else None),
        LogMel(setting.sampling_rate, setting.mel_bins, -4.27, 4.57),
        settings,
        parts={"contrastive": 1.0, "reconstruction": 10.0},
        masking=Masking("cluster", round(share * network.grid[0] * network.grid[1])),
        drop_path=0.0,
        seed=0,
    )


def make_step(module: Pretraining, setting: Setting) -> Callable[[], None]:
    """A step on noise, each call with masks of its own."""
    s = module.settings
    optimizer = torch.optim.AdamW(module.parameter_groups(), betas=(s.beta1, s.beta2), fused=True)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(setting.batch, samples_for(setting.frames, setting.sampling_rate), generator=generator)
    lengths = torch.full((setting.batch,), waveform.shape[1])
    heard = 0

    def step() -> None:
        nonlocal heard
        places = range(heard, heard + setting.batch)
        heard += setting.batch
        loss = module.objectives(module.log_mel(waveform, lengths), module.draw_mask("train", places))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), 1.0)
        optimizer.step()

    return step


def cpu_seconds(steps: Mapping[str, Callable[[], None]], rounds: int, name: str) -> dict[str, list[float]]:
    """Of each step in each round, which makes all in turn. Before these, kernels are compiled and memory is taken."""
    times: dict[str, list[float]] = {encode: [] for encode in steps}
    with progress_bar((WARMUP + rounds) * len(steps), "step", name) as bar:
        for _ in range(WARMUP + rounds):
            for encode, step in steps.items():
                began = time.process_time()
                step()
                times[encode].append(time.process_time() - began)
                bar.update()
    return {encode: values[WARMUP:] for encode, values in times.items()}


def measure(encoder: str, setting: Setting, share: float, rounds: int, name: str) -> dict[str, Any]:
    """Seconds of a step of each kind, and how many times the steps a second the visible ones are."""
    steps = {encode: make_step(make_module(encoder, setting, share, encode), setting) for encode in ("all", "visible")}
    times = cpu_seconds(steps, rounds, name)
    ratios = torch.tensor([every / some for every, some in zip(times["all"], times["visible"], strict=True)])
    drawn = torch.randint(rounds, (RESAMPLES, rounds), generator=torch.Generator().manual_seed(0))
    ratio = interval(statistics.median(ratios.tolist()), ratios[drawn].quantile(0.5, dim=1))
    return {**{encode: statistics.median(values) for encode, values in times.items()}, "ratio": ratio._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["ssamba"], choices=list(SIZES))
    parser.add_argument("--size", choices=list(SIZES["ssamba"]), help="of all encoders, instead of the settings' own")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--share", type=float, default=0.75, help="of the patches, that are hidden")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="also write the times as JSON")
    given = parser.parse_args()
    if not 0 < given.share < 1 or given.rounds < 1:
        parser.error(
            f"--share {given.share:g} --rounds {given.rounds}; expected a share between 0 and 1, and at least 1 round"
        )
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    goals = []
    rows = [("clips", "encoder", "size", "all, ms", "visible, ms", "ratio")]
    for name in given.settings:
        setting = SETTINGS[name]._replace(**({"size": given.size} if given.size else {}))
        for encoder in given.encoders:
            found = measure(encoder, setting, given.share, given.rounds, f"{name}, {encoder}")
            results.setdefault(name, {})[encoder] = {"size": setting.size, **found}
            ratio = Interval(**found["ratio"])
            milliseconds = (f"{1000 * found[encode]:.1f}" for encode in ("all", "visible"))
            rows.append((name, encoder, setting.size, *milliseconds, str(ratio)))
            if encoder == "ssamba" and given.share == 0.75:
                goals.append(
                    Goal(f"{name}, {setting.size}: steps a second, visible over all", ">=", ASKED, ratio.value)
                )
    print(markdown_table(rows))
    if goals:
        print(f"\n{goals_table(goals)}")
    if given.out:
        write_json(
            given.out,
            {
                "share": given.share,
                "rounds": given.rounds,
                "seconds": results,
                "goals": [goal._asdict() for goal in goals],
                "hardware": hardware(),
                "versions": versions(),
            },
        )


if __name__ == "__main__":
    main()
