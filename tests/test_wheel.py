"""The wheel, in a bare environment: what `pip install ssamba` gives goes the whole road without the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import soundfile
from one_process import COMMANDS

from ssamba.data.prepare.recordings import Recording
from ssamba.packaged import packaged

ROOT = Path(__file__).parents[1]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the files that git knows, so that nothing else gets in and nothing is left beside them."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source]
    subprocess.run(list(map(str, words)), check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`ssamba` of an environment that has the wheel, and of the others' packages all but this one's checkout."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place / "venv", with_pip=False)
    python = place / "venv" / "bin" / "python"
    into = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into.stdout.decode().strip())
    # A folder of PYTHONPATH is no site folder: the .pth files in it, such as the checkout's, are not read.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}

    def run(*commands: Sequence[object]) -> str:
        lines = json.dumps([[str(word) for word in words] for words in commands])
        done = subprocess.run(
            [python, "-c", COMMANDS, lines], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {f"ssamba/{path.relative_to(ROOT / 'ssamba').as_posix()}" for path in (ROOT / "ssamba").rglob("*.py")}
    for folder, pattern in (("recipes", "*.yaml"), ("recipes", "*.s*"), ("data_prep", "*.py")):
        files = list((ROOT / folder).rglob(pattern))
        assert files
        inside |= {f"ssamba/{folder}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert inside | {"ssamba/py.typed", "ssamba/doctor/expected.json"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.split("/")[0] in ("tests", "benchmarks", "recipes", "data_prep") for name in names)


def test_from_recordings_to_predictions(command: Command, corpus: Path, tmp_path: Path) -> None:
    copied, labels = tmp_path / "mine.yaml", tmp_path / "labels.yaml"
    sounds = tmp_path / "sounds"
    for index in range(24):
        name = sounds / ("low", "high")[index % 2] / f"{index}.wav"
        name.parent.mkdir(parents=True, exist_ok=True)
        generator_of = [((index % 2 + 1) * step % 7) / 7 - 0.5 for step in range(16000)]
        soundfile.write(name, generator_of, 16000)
    small = ["model.size=nano", "audio.max_length=64", "trainer.max_steps=1", "data.batch_size=4", "data.num_workers=0"]
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    splits = [f"data.train={shards / 'train'}", f"data.validation={shards / 'validation'}"]
    labelled = [f"data.test={shards / 'test'}", f"model.pretrained={runs / 'pretrained'}"]
    said = command(
        ["recipes", "list"],
        ["recipes", "show", "pretrain/folder"],
        ["recipes", "copy", "pretrain/folder", copied],
        ["recipes", "copy", "finetune/folder", labels],
        ["prepare", "folder", sounds, shards, "--test", "0.25", "--validation", "0.1"],
        ["pretrain", copied, f"run_dir={runs / 'pretrained'}", *splits, *small],
        ["finetune", labels, f"run_dir={runs / 'labels'}", *splits, *labelled, *small],
        ["predict", runs / "labels", sounds / "low" / "0.wav"],
    )
    listed, shown, copy, *_, predicted = said.split("$ ")[1:]
    recipe = (packaged("recipes") / "pretrain" / "folder.yaml").read_text()
    assert "pretrain/folder " in listed and shown == f"recipes show pretrain/folder\n{recipe}"
    assert copied.read_text() == recipe and copy.split()[-1] == str(copied)
    assert json.loads((runs / "labels" / "run.json").read_text())["steps"] == 1
    assert "low" in predicted.splitlines()[1] and "high" in predicted.splitlines()[1]


def test_the_demo_goes_the_whole_road_on_a_folder_of_recordings(
    command: Command, recordings: dict[str, list[Recording]], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "demo"
    for recording in [one for split in recordings.values() for one in split]:
        label = str(recording.labels["sound"])
        (data / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(recording.path, data / label)
    said = command(["demo", "--data", data, "--out", out, "--scale", 0.005])
    page = (out / "report.html").read_text()
    for encoder in ("ssamba", "ssast"):
        for run in ("pretrain", "labels-pretrained", "labels-scratch"):
            record = json.loads((out / "runs" / f"{encoder}-{run}" / "run.json").read_text())
            assert record["steps"] == (3 if run == "pretrain" else 1)
        score = json.loads((out / "runs" / f"{encoder}-labels-scratch" / "test" / "scores.json").read_text())
        assert re.search(rf"<td[^>]*>{score['accuracy']:.3f} \[", page)
        for start in ("pretrained", "from scratch"):
            assert re.search(rf"\| [A-D] +\| {encoder} +\| {start} ", said)
    baseline = json.loads((out / "runs" / "ssamba-labels-pretrained" / "run.json").read_text())["baseline"]["scores"]
    assert f"without a network: {baseline['accuracy']:.3f}\n" in said
    assert said.count(" not told apart ") + said.count(", of these runs ") == 6  # pairs of four groups of one seed
    assert re.search(r"\| ssast .*\| 3 of over [0-9,]+ needed", said)
    for picture in out.glob("**/*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list(out.glob("**/test/confusion.png"))) == 4
