"""A corpus of synthetic recordings, recipes small enough for seconds, and runs that several tests read."""

import asyncio
import hashlib
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import shallow  # noqa: F401
import soundfile
import torch
import yaml
from buckets import Bucket
from matplotlib.figure import Figure
from matplotlib.image import imsave

from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards import transport
from ssamba.evaluation import pictures
from ssamba.files import made_folder, written_beside

torch.set_num_threads(1)

MEMORY = Path("/dev/shm")


def pytest_configure() -> None:
    """Many small files are made: in memory, where there is room for them, since on a disk they take minutes."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 8e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


RATE = 16000
SOUNDS = ("falling", "high", "low", "rising")
SPEAKERS = ("ada", "ben", "cyd")
TAKES = {"train": range(5), "validation": range(5, 6), "test": range(6, 8)}


def _sound(name: str, seconds: float, pitch: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A tone or a chirp at a speaker's pitch, with noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    start, stop = {"low": (400, 400), "high": (2500, 2500), "rising": (300, 3000), "falling": (3000, 300)}[name]
    phase = 2 * np.pi * pitch * (start * time + (stop - start) / (2 * seconds) * time**2)
    return 0.4 * np.sin(phase) + rng.normal(0, 0.02, time.shape)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Recording]]:
    """Split -> recordings of 0.2 to 1.2 s with the labels sound and speaker (one each) and tags (several)."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    found: dict[str, list[Recording]] = {split: [] for split in TAKES}
    for sound in SOUNDS:
        for number, speaker in enumerate(SPEAKERS):
            for split, takes in TAKES.items():
                for take in takes:
                    path = folder / f"{sound}-{speaker}-{take}.wav"
                    soundfile.write(path, _sound(sound, rng.uniform(0.2, 1.2), 1 + 0.1 * number, rng), RATE)
                    tags = [sound, "steady" if sound in ("low", "high") else "gliding"]
                    labels = {"sound": sound, "speaker": speaker, "tags": tags}
                    found[split].append(Recording(path.stem, path, labels))
    return found


@pytest.fixture(scope="session")
def corpus(recordings: dict[str, list[Recording]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with train (60 samples in 5 shards), validation (12) and test (24)."""
    out = tmp_path_factory.mktemp("corpus") / "shards"
    write_shards(recordings, out, "sounds", samples_per_shard=12)
    return out


@pytest.fixture(scope="session")
def recipes(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """pretrain and finetune: tiny recipes on the corpus, without a run_dir of their own."""
    folder = tmp_path_factory.mktemp("recipes")
    splits = {split: str(corpus / split) for split in ("train", "validation")}
    common = {
        "audio": {"max_length": 64},
        "model": {"encoder": "ssamba", "size": "nano"},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 2},
        "trainer": {"max_steps": 4, "validate_every_steps": 2, "log_every_steps": 1, "accelerator": "cpu"},
    }
    pretrain = {
        "task_type": "pretrain",
        **common,
        "data": {**splits, "short": "pack", "batch_size": 4},
        "objective": {"parts": {"contrastive": 1, "reconstruction": 10}},
        "mask": {"share": 0.375},
    }
    finetune = {
        "task_type": "finetune",
        **common,
        "data": {**splits, "test": str(corpus / "test"), "short": "repeat", "batch_size": 4},
        "task": {"label": "sound"},
        "evaluation": {"baseline": "none"},
    }
    paths = {}
    for name, recipe in (("pretrain", pretrain), ("finetune", finetune)):
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(recipe))
    return paths


@pytest.fixture(scope="session")
def pretrained(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Encoder -> the folder of a pretraining run, to be read only."""
    runs: dict[str, Path] = {}

    def run(encoder: str) -> Path:
        if encoder not in runs:
            folder = tmp_path_factory.mktemp("runs") / f"{encoder}-pretrain"
            assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={folder}", f"model.encoder={encoder}"]) == 0
            runs[encoder] = folder
        return runs[encoder]

    return run


@pytest.fixture(scope="session")
def finetuned(
    recipes: dict[str, Path], pretrained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Encoder -> the folder of a fine-tuning run from `pretrained`, to be read only."""
    runs: dict[str, Path] = {}

    def run(encoder: str) -> Path:
        if encoder not in runs:
            folder = tmp_path_factory.mktemp("runs") / f"{encoder}-finetune"
            words = [f"run_dir={folder}", f"model.encoder={encoder}", f"model.pretrained={pretrained(encoder)}"]
            assert main(["finetune", str(recipes["finetune"]), *words]) == 0
            runs[encoder] = folder
        return runs[encoder]

    return run


@pytest.fixture(scope="session")
def any_picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A PNG of noise, some kilobytes long."""
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    imsave(path, np.random.default_rng(0).random((32, 32)))
    return path.read_bytes()


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, any_picture: bytes) -> Iterator[None]:
    """Pictures are files of noise: to draw those of a small run takes as long as it does. Not where the mark `drawn`
    is, nor in runs that tests share (they are made before this)."""
    if request.node.get_closest_marker("drawn"):
        yield
        return

    def save(figure: Figure, path: Path) -> None:
        with made_folder(path.parent), written_beside(path) as beside:
            beside.write_bytes(any_picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_figure", save)
        patch.setattr(pictures, "Figure", _BlankFigure)
        yield


class _BlankFigure(MagicMock):
    """Takes all that is drawn, and draws none of it."""

    def subplots(self, rows: int = 1, columns: int = 1, squeeze: bool = True, **_: Any) -> Any:
        axes = np.empty((rows, columns), object)
        axes.fill(MagicMock())
        return axes.squeeze()[()] if squeeze else axes


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the command: it exits with 2, one message and no traceback on stderr, nothing on stdout, nothing written."""

    def call(*words: object) -> str:
        before = _digests(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr()
        assert said.out == "" and "Traceback" not in said.err
        # Before it there may be the bars of what was read until the mistake was found.
        bars, _, message = said.err.rpartition("ssamba: ")
        assert message and "ssamba: " not in bars and (not bars or bars.endswith("\n"))
        assert _digests(tmp_path) == before
        return message

    return call


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A folder that several tests share -> a copy that a test may change."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copies" / folder.name)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Bucket]:
    """A server that speaks S3."""
    for name in ("s3fs", "moto.server", "boto3"):
        pytest.importorskip(name, reason="the extra s3, or moto, which is the server, is not installed")
    bucket = Bucket()
    thread = threading.Thread(target=bucket.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield bucket
    bucket.server.shutdown()
    thread.join()


@pytest.fixture
def bucket(s3_server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The server's bucket, empty, where the drivers find it and credentials for it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    # Between two attempts neither we wait nor the driver.
    sleep = asyncio.sleep
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *result: sleep(0, *result))
    s3_server.clear()
    return s3_server


@pytest.fixture
def no_room() -> Callable[[int], AbstractContextManager[None]]:
    """Within it no file grows beyond so many bytes, as on a disk that is full."""

    @contextmanager
    def limited(most_bytes: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited
