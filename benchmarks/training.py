"""Pretraining in half precision on spectrograms that are hard on it: how often something is not finite.

    python benchmarks/training.py [--device cpu] [--steps 1000] [--batch 8] [--frames 256]

SSAMBA nano, the joint objective, patches of 16 x 16, AdamW and clipped gradients as in a recipe; bfloat16 autocast, and
with --device cuda float16 autocast with a loss scaler, too, which skips the steps whose gradients overflow. Every batch
has noise of twenty times the usual scale and, among its clips, a constant one, one of padding alone, one that ends
early and one with outliers of 10,000.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.evaluation.efficiency import Goal, goals_table, versions
from ssamba.files import write_json
from ssamba.masking import Masking
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.progress import progress_bar
from ssamba.schedules import warmup_then_cosine
from ssamba.training.common import OptimizerSettings
from ssamba.training.pretraining import Pretraining
from ssamba.training.runs import hardware

PADDING = 4.27 / (2 * 4.57)  # log-mel 0 under AudioSet's statistics
WINDOW = 50  # steps at either end, over which losses are averaged


def hard_batch(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """(B, T, 128), normalised log-mel values; B of at least 4."""
    x = 20 * torch.randn(batch, frames, 128, generator=generator)
    x[0] = 20 * torch.randn(1, generator=generator)
    x[1] = PADDING
    x[2, int(torch.randint(frames, (1,), generator=generator)) :] = PADDING
    outliers = torch.rand(frames, 128, generator=generator) < 1e-3
    x[3, outliers] = 1e4 * x[3, outliers].sign()
    return x


def make_module(frames: int, steps: int) -> Pretraining:
    encoder = AudioEncoder("ssamba", SIZES["ssamba"]["nano"], 128, frames, 16, 16, 16, 16)
    settings = OptimizerSettings(
        learning_rate=5e-4,
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=min(100, steps),
        max_steps=steps,
        final_fraction=0.1,
        plateau_patience=1,
    )
    return Pretraining(
        MaskedPatchModel(encoder),
        LogMel(16000, 128, -4.27, 4.57),
        settings,
        parts={"contrastive": 1.0, "reconstruction": 10.0},
        masking=Masking("cluster", encoder.grid[0] * encoder.grid[1] // 2),
        drop_path=0.0,
        seed=0,
    )


def finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def train(precision: torch.dtype, device: str, steps: int, batch: int, frames: int) -> dict[str, Any]:
    """In how many steps the loss, a gradient or, afterwards, a parameter is not finite; mean losses at both ends."""
    torch.manual_seed(0)
    module = make_module(frames, steps).to(device)
    s = module.settings
    parameters = list(module.model.parameters())
    optimizer = torch.optim.AdamW(module.parameter_groups(), betas=(s.beta1, s.beta2))
    factor = warmup_then_cosine(s.warmup_steps, s.max_steps, s.final_fraction)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.grad_scaler.GradScaler(device, enabled=precision == torch.float16)
    generator = torch.Generator().manual_seed(0)
    bad = {"losses": 0, "gradients": 0, "parameters": 0}
    losses = []
    with progress_bar(steps, "step", str(precision).removeprefix("torch.")) as bar:
        for number in range(steps):
            log_mel = hard_batch(batch, frames, generator).to(device)
            mask = module.draw_mask("train", range(number * batch, (number + 1) * batch))
            with torch.autocast(device, precision):
                loss = module.objectives(log_mel, mask)["loss"]
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            bad["losses"] += not finite([loss])
            bad["gradients"] += not finite([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            bad["parameters"] += not finite(parameters)
            losses.append(loss.item())
            bar.update()
    return {
        "steps": steps,
        "not_finite": bad,
        "first_loss": statistics.mean(losses[:WINDOW]),
        "last_loss": statistics.mean(losses[-WINDOW:]),
        "loss_scale": scaler.get_scale(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name, size in (("steps", 1000), ("batch", 8), ("frames", 256)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mixed_precision.json")
    given = parser.parse_args()
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    if given.batch < 4 or given.steps < 1 or given.frames < 16:
        parser.error(f"{given.steps} steps, batch {given.batch}, {given.frames} frames; expected at least 1, 4 and 16")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    precisions = [torch.bfloat16, torch.float16] if given.device == "cuda" else [torch.bfloat16]
    runs, goals = {}, []
    for precision in precisions:
        name = str(precision).removeprefix("torch.")
        runs[name] = run = train(precision, given.device, given.steps, given.batch, given.frames)
        print(
            f"{name}: loss {run['first_loss']:.4g} over the first {WINDOW} steps, {run['last_loss']:.4g} over the last"
        )
        for what, count in run["not_finite"].items():
            if precision == torch.float16 and what == "gradients":
                print(f"{name}: {count} steps skipped by the loss scaler, which is {run['loss_scale']:g} at the end")
            else:
                goals.append(Goal(f"{name}: steps with {what} that are not finite", "<=", 0, count))
    print(goals_table(goals))
    write_json(
        given.out,
        {
            "device": given.device,
            "batch": given.batch,
            "frames": given.frames,
            "runs": runs,
            "goals": [goal._asdict() for goal in goals],
            "hardware": hardware(),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
