"""Encoders and training, tried: what they compute is compared with what it was when `EXPECTED` was made.

    python -m ssamba.doctor.selfcheck

makes that file again, after a change of the numbers that is meant.

Shapes: B batch, S samples.
"""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ssamba.config import ENCODERS
from ssamba.doctor.findings import LOCK, Finding, cause_of, ok, problem
from ssamba.files import read_json, write_json

EXPECTED = Path(__file__).with_name("expected.json")
"""{what was computed: {name: value}}."""
TOLERANCE = 1e-3
"""Of a value's own size; between the scan's kernels and its reference, 1e-7."""

_RATE = 16000
_SECONDS = 300.0  # that the training of two steps may take, kernels compiled
TRAIN = """
import sys
from pathlib import Path
from ssamba.cli import main
from ssamba.doctor.selfcheck import write_recipe
sys.exit(main(["pretrain", str(write_recipe(Path(sys.argv[1])))]))
"""
# Environment variables of launchers, which are not passed on: the training that is tried is a run of one process.
_LAUNCHED = re.compile(r"SLURM_\w+|TORCHELASTIC_\w+|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)")


def encoders() -> Iterator[Finding]:
    """A small model of each encoder: waveforms to spectrograms, masks, one forward and backward pass."""
    import torch

    expected = _expected()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for encoder in ENCODERS:
            yield _compared(f"{encoder} on {device}", expected[encoder], partial(encoder_values, encoder, device))


def encoder_values(encoder: str, device: str) -> dict[str, float]:
    """Losses and the norm of the gradient of a seeded model with two layers on two seeded clips."""
    import torch

    from ssamba.audio import LogMel, samples_for
    from ssamba.losses import info_nce, reconstruction_mse
    from ssamba.masking import Masking, clip_generator
    from ssamba.models.encoder import SIZES, AudioEncoder
    from ssamba.models.heads import MaskedPatchModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {**SIZES[encoder]["nano"], "num_hidden_layers": 2}
        model = MaskedPatchModel(AudioEncoder(encoder, options, 64, 64, 16, 16, 16, 16)).to(device)
        waveform = torch.from_numpy(_sounds(samples_for(64, _RATE) / _RATE)).to(device)
    lengths = torch.full((len(waveform),), waveform.shape[1], device=device)
    log_mel = LogMel(_RATE, 64, -4.0, 4.0).to(device)(waveform, lengths)
    generators = [clip_generator(0, "doctor", place) for place in range(len(waveform))]
    mask = Masking("random", 8).draw(*model.encoder.grid, generators).to(device)
    prediction = model(log_mel, mask)
    contrastive = info_nce(prediction.contrastive, prediction.target).loss
    reconstruction = reconstruction_mse(prediction.reconstruction, prediction.target)
    (contrastive + 10 * reconstruction).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return {"contrastive": contrastive.item(), "reconstruction": reconstruction.item(), "gradient": norm.item()}


def _sounds(seconds: float) -> Any:
    """Two chirps with noise, float32 (2, S)."""
    import numpy as np

    time = np.arange(round(seconds * _RATE)) / _RATE
    noise = np.random.default_rng(0).normal(0, 0.02, (2, len(time)))
    rates = np.array([[400.0], [2500.0]])
    return (0.4 * np.sin(2 * np.pi * (rates * time + 800 * time**2)) + noise).astype(np.float32)


def training() -> Iterator[Finding]:
    """Two steps of `ssamba pretrain` on shards that are written for it, in a folder and a process of their own."""
    with tempfile.TemporaryDirectory(prefix="ssamba-doctor-") as folder:
        yield _compared("two steps of pretraining", _expected()["training"], partial(_train_apart, Path(folder)))


def _train_apart(folder: Path) -> dict[str, float]:
    from ssamba.evaluation.pictures import read_metrics

    environment = {name: value for name, value in os.environ.items() if not _LAUNCHED.fullmatch(name)}
    command = [sys.executable, "-c", TRAIN, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
    )
    if done.returncode < 0:
        raise ChildProcessError(f"it was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing said"]
        raise ChildProcessError(f"it ended with status {done.returncode}: {lines[-1]}")
    return {
        f"{name} {step}": float(row[f"train/{name}"])
        for step, row in enumerate(read_metrics(folder / "run" / "metrics.csv"), 1)
        for name in ("contrastive", "reconstruction")
    }


def write_recipe(folder: Path) -> Path:
    """A recipe of two steps, and the shards that it names, in a folder."""
    import soundfile

    from ssamba.data.prepare.recordings import Recording
    from ssamba.data.prepare.writer import write_shards

    recordings = []
    for index, sound in enumerate(_sounds(4.0).reshape(8, -1)):
        path = folder / f"{index}.wav"
        soundfile.write(path, sound, _RATE)
        recordings.append(Recording(path.stem, path, {}))
    write_shards({"train": recordings}, folder / "shards", "chirps")
    recipe = {
        "task_type": "pretrain",
        "run_dir": str(folder / "run"),
        "audio": {"max_length": 64, "num_mel_bins": 64},
        "model": {"size": "nano"},
        "data": {"train": str(folder / "shards" / "train"), "batch_size": 4},
        "objective": {"parts": {"contrastive": 1, "reconstruction": 10}},
        "mask": {"share": 0.375},
        "trainer": {"max_steps": 2, "log_every_steps": 1, "accelerator": "cpu"},
    }
    write_json(folder / "recipe.yaml", recipe)
    return folder / "recipe.yaml"


def _expected() -> dict[str, dict[str, float]]:
    return read_json(EXPECTED, dict[str, dict[str, float]], "the values that come with the package")


def _compared(name: str, expected: Mapping[str, float], compute: Callable[[], Mapping[str, float]]) -> Finding:
    remedy = f"see what is told of the backends above; or {LOCK}"
    try:
        values = compute()
    except Exception as error:  # whatever fails in it, of every library
        return problem(name, f"it fails: {cause_of(error)}", remedy)
    wrong = [
        f"{key} is {values.get(key, math.nan):.6g}, not {value:.6g}"
        for key, value in expected.items()
        if not abs(values.get(key, math.nan) - value) <= TOLERANCE * abs(value)
    ]
    if wrong:
        return problem(name, f"it computes something else: {', '.join(wrong)}", remedy)
    return ok(name, f"{', '.join(f'{key} {value:.4g}' for key, value in values.items())}, as expected")


def measured() -> dict[str, dict[str, float]]:
    """What `EXPECTED` holds, computed here."""
    values = {encoder: encoder_values(encoder, "cpu") for encoder in ENCODERS}
    with tempfile.TemporaryDirectory(prefix="ssamba-doctor-") as folder:
        return {**values, "training": _train_apart(Path(folder))}


if __name__ == "__main__":
    write_json(EXPECTED, measured())
