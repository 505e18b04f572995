"""Each file of a run folder, damaged in each way, for every command that takes a run: what needs it stops with one
message, what does not goes on, and nothing ends in a traceback."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.cli import main
from ssamba.comparison.runs import read_run
from ssamba.errors import UserError

Runs = Callable[[str], Path]

DAMAGE = {
    "missing": None,
    "empty": b"",
    "truncated": 0.5,
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no object of ours": b'{"a": 1}',
    "deep": b'{"a":' * 100_000,
    "binary": bytes(range(256)) * 8,
    "halves of characters": b'{"steps": "\\ud800"}',
    "another encoding": '{"steps": 4}'.encode("utf-16"),
}
FILES = (
    "run.json",
    "recipe.yaml",
    "metrics.csv",
    "checkpoints/step-0000004.json",
    "checkpoints/step-0000002.json",
    "checkpoints/best.json",
    "checkpoints/best.ckpt",
    "checkpoints/step-0000004.ckpt",
)
# What each command has to have of them, apart from what is in model/.
NEEDS = {
    "predict": set(),
    "embed": set(),
    "export": set(),
    "evaluate": {"recipe.yaml"},
    "stats": {"recipe.yaml"},
    "comparison": {"recipe.yaml", "run.json"},
    "resume": {"recipe.yaml"},
}


def damage(path: Path, how: str) -> None:
    content = DAMAGE[how]
    if content is None:
        path.unlink()
    elif isinstance(content, float):
        whole = path.read_bytes()
        part = whole[: int(content * len(whole))]
        if path.suffix == ".yaml":  # cut between two lines it may be a recipe still; so within a key
            part = part[: [key.end() for key in re.finditer(rb"\n *\w+(?=\w:)", part)][-1]]
        path.write_bytes(part)
    else:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def whole_run(recipes: dict[str, Path], pretrained: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run, to be read only, whose pool the authors of SSAST have, too."""
    run = tmp_path_factory.mktemp("runs") / "ssast-mean"
    words = ["model.encoder=ssast", f"model.pretrained={pretrained('ssast')}", "task.pooling=mean"]
    assert main(["finetune", str(recipes["finetune"]), f"run_dir={run}", *words]) == 0
    return run


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(8000) / 5), 16000)
    return path


def call(command: str, run: Path, tone: Path, out: Path) -> int:
    """Its status."""
    words = {
        "predict": ["predict", run, tone],
        "embed": ["embed", run, tone, "--out", out / "x.npz"],
        "export": ["export", run, out / "x.pth", "--format", "ssast"],
        "evaluate": ["evaluate", run, "--overwrite"],
        "stats": ["stats", run, "--limit", "1"],
        "resume": ["finetune", run, "--resume", run],
    }
    if command != "comparison":
        return main([str(word) for word in words[command]])
    try:
        read_run(run)
    except UserError as error:
        print("ssamba:", error)
        return 2
    return 0


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in FILES
        for how in DAMAGE
        if (name == "run.json" or how in ("missing", "empty", "truncated", "a list", "deep", "binary"))
    ],
)
def test_a_damaged_file_stops_what_needs_it_alone(
    name: str,
    how: str,
    whole_run: Path,
    copy_of: Callable[[Path], Path],
    tone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy_of(whole_run)
    damage(run / name, how)
    commands = [command for command in NEEDS if name in NEEDS[command]]
    # Of those that do not need it, what looks at it; the rest at one way of damage.
    commands += ["predict", "resume"] if name == "run.json" else ["resume"] if name != "recipe.yaml" else []
    if how == "empty" and name in ("run.json", "metrics.csv", "recipe.yaml"):
        commands = list(NEEDS)
    for command in commands:
        if command == "resume" and name != "run.json":
            (run / "run.json").unlink()  # or there would be nothing left to go on with
        status = call(command, run, tone, tmp_path)
        said = "".join(capsys.readouterr())
        assert "Traceback" not in said
        if name in NEEDS[command]:
            assert status == 2 and said.count("ssamba: ") == 1, (command, said)
        else:
            assert status == 0, (command, said)
            for path in (tmp_path / "x.npz", tmp_path / "x.pth"):
                path.unlink(missing_ok=True)
