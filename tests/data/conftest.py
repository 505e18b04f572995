import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets: a (train: 3 shards of 2; test: 1 of 2) and b (train: 1 of 2), with other labels."""
    folder = tmp_path_factory.mktemp("made")
    recordings = []
    for number in range(8):
        path = folder / "in" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.full(1600, number / 10), 16000)
        recordings.append(Recording(f"key{number}", path, {"parity": ["even", "odd"][number % 2]}))
    splits = {"train": recordings[:6], "test": recordings[6:]}
    write_shards(splits, folder / "a", "a", samples_per_shard=2)
    coloured = [Recording(one.key, one.path, {"colour": "red"}) for one in recordings[:2]]
    write_shards({"train": coloured}, folder / "b", "b")
    shutil.rmtree(folder / "in")
    return folder


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy of them to damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))
