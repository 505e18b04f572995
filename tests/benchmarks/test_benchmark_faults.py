"""The fault trials: every kind of damage is one, what is lost is told, a history of starts is read as it counted."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def faults(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("faults")


def run(faults: Any, monkeypatch: pytest.MonkeyPatch, out: Path) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["faults", "--parts", "damage", "--mutations", "14", "--out", str(out)])
    return faults.main(), json.loads(out.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="the trials fork")
def test_damaged_shards_are_survived(
    faults: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, result = run(faults, monkeypatch, tmp_path / "faults.json")
    assert status == 0 and "| all" in capsys.readouterr().out
    assert [trial["kind"] for trial in result["damage"]] == [*faults.MUTATIONS] * 2
    assert all(trial["lost"] is None and trial["verify"] == "found" for trial in result["damage"] if trial["changed"])
    assert sum(trial["changed"] for trial in result["damage"]) >= 13


@pytest.mark.skipif(sys.platform != "linux", reason="the trials fork")
@pytest.mark.parametrize("fault", ["hangs", "crashes with", "writes elsewhere", "a traceback", "does not find"])
def test_what_is_lost_is_told(faults: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str) -> None:
    good = {"verify": "found", "read": "whole", "index": "made", "read_anew": "whole", "traceback": False}

    def handle(folder: Path, answers: Any) -> None:
        if fault == "hangs":
            time.sleep(60)
        if fault == "crashes with":
            sys.exit(3)
        if fault == "writes elsewhere":
            (folder.parent / "evil").write_text("")
        changes = {"a traceback": {"traceback": True}, "does not find": {"verify": "passed"}}
        answers.put({**good, **changes.get(fault, {})})

    monkeypatch.setattr(faults, "handle", handle)
    monkeypatch.setattr(faults, "TRIAL", 0.5)
    monkeypatch.setattr(faults, "MUTATIONS", {"bits flipped": faults.flip_bits})
    (one,) = faults.try_damage(1, 0)
    assert fault in one["lost"]


def test_what_counted_in_the_end(faults: Any, tmp_path: Path) -> None:
    trial = faults.Trial(tmp_path, tmp_path / "recipe.yaml", "run")
    (tmp_path / "run.heard0").write_text("0 0:a 1:b\n1 4:e 5:f\n2 8:i 9:j\n1 4:e 5:f\n2 8:k 9:l\n")
    (tmp_path / "run.heard1").write_text("0 2:c 3:d\n1 6:g 7:h\n")
    steps, again = trial.learned_from()
    assert steps == {0: ["0:a", "1:b", "2:c", "3:d"], 1: ["4:e", "5:f", "6:g", "7:h"], 2: ["8:k", "9:l"]}
    assert again == 2


# Inputs that are changed


@pytest.fixture
def inputs(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("mutated_inputs")


@pytest.mark.skipif(sys.platform != "linux", reason="the trials fork")
def test_changed_inputs_are_survived(
    inputs: Any, faults: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A trial at least of each kind of change of some inputs, written as a table."""
    cheap = {"config.json", "index", "table that is expected", "recipe to measure", "list.csv", "flac to predict"}
    every = inputs.inputs
    monkeypatch.setattr(inputs, "FORMATS", {"flac": ("FLAC", "PCM_16")})
    monkeypatch.setattr(inputs, "inputs", lambda path: [one for one in every(path) if one.name in cheap])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["faults", "--parts", "inputs", "--inputs", "40", "--out", str(tmp_path / "faults.json")]
    )
    assert faults.main() == 0
    assert "| config.json" in capsys.readouterr().out
    result = json.loads((tmp_path / "faults.json").read_text())["inputs"]
    assert result["lost"] == []
    assert sum(int(row[1]) for row in result["table"][1:]) >= 40


CALM = (0, "read\n", 1e8)


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (CALM, None),
        ((None, "", 1e8), "hangs"),
        ((-11, "", 1e8), "crashes"),
        ((2, "Traceback\nssamba: x", 1e8), "a traceback"),
        ((2, "", 1e8), "no message"),
        ((2, "ssamba: x\nssamba: y", 1e8), "or several"),
        ((0, "", 3e9), "memory"),
    ],
)
def test_how_a_command_must_not_end(inputs: Any, ended: tuple[Any, ...], why: str | None) -> None:
    told = inputs.lost(*ended)
    assert (told is None) if why is None else why in told


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("nothing", None),
        ("elsewhere", "writes elsewhere"),
        ("unfinished", "not finished"),
        ("less", "without a word"),
        ("less, told", None),
        ("unseen", "without a word"),
    ],
)
def test_what_a_trial_finds(
    inputs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, why: str | None
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"0123456789")

    def call(home: Path, command: tuple[str, ...]) -> tuple[int, str, float]:
        assert Path.cwd() == home and (home / "file").read_bytes() != b"0123456789"
        home.with_name("said").touch()
        if does == "elsewhere":
            (home.parent / "evil").touch()
        if does == "unfinished":
            (home / ".ssamba-tmp-0").touch()
        return 0, "1 s\n" + ("a warning\n" if does == "less, told" else ""), 1e8

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "call", call)
    less = does.startswith("less")
    one = inputs.Input(
        "kind",
        "name",
        "file",
        {"zeros": inputs.zero},
        ("read",),
        1,
        lambda said: 1.0 if less else 2.0,
        summed=does == "unseen",
    )
    trial = inputs.Trial(0, "zeros", 0)
    found = inputs.try_one(trial, one, tmp_path / "source", tmp_path / "trial" / "home", ("2 s\n", 2.0), 0)
    assert found["lost"] is None if why is None else why in found["lost"]


def test_a_process_of_its_own(inputs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it prints, its status and its memory; one that hangs is ended."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(inputs, "ssamba", lambda words: print(*words) or 1)
    status, said, memory = inputs.call(tmp_path / "home", ("some", "words"))
    assert (status, said) == (1, "some words\n") and memory > 1e7
    monkeypatch.setattr(inputs, "TRIAL", 0.2)
    monkeypatch.setattr(inputs, "ssamba", lambda words: time.sleep(60))
    assert inputs.call(tmp_path / "home", ("some",))[0] is None


@pytest.mark.parametrize("name", ["BYTES", "JSON", "YAML", "LISTS"])
def test_every_change_changes(inputs: Any, name: str) -> None:
    """Most often: a bit may be flipped twice, a value be exchanged for its equal."""
    whole = {
        "BYTES": bytes(range(256)) * 8,
        "JSON": b'{"a": {"b": [1, 2]}, "c": "x"}',
        "YAML": b"a:\n  b: [1, 2]\nc: x\n",
        "LISTS": b"path,label\na.wav,cat\nb.wav,dog\n",
    }[name]
    for change in getattr(inputs, name).values():
        results = [change(whole, inputs.random.Random(number)) for number in range(20)]
        assert sum(result != whole for result in results) >= 12 and len(set(results)) > 2
        assert change(whole, inputs.random.Random(3)) == results[3]
