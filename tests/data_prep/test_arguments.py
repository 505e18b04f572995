"""Every argument of every script of data_prep, and what a script says of the system's errors."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from layouts import SCRIPTS, script

from ssamba.values import Argument, number, plain_text, share, whole_number

NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
THAT_MUST_BE = {"iemocap": ["--test-session=1"], "speech_commands": ["--version=v1"]}


class Parsed(Exception):
    pass


def parser_of(name: str) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as raised:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        script(name).main([])
    parser: argparse.ArgumentParser = raised.value.args[0]
    return parser


PARSERS = {name: parser_of(name) for name in NAMES}
TYPED = [
    (name, action)
    for name, parser in PARSERS.items()
    for action in parser._actions
    if isinstance(action.type, Argument)
]
NUMBERS = [(name, action) for name, action in TYPED if action.type.read in (number, share, whole_number)]  # type: ignore[union-attr]
PATHS = [(name, action) for name, action in TYPED if action.type.read not in (number, share, whole_number, plain_text)]  # type: ignore[union-attr]


def line(name: str, action: argparse.Action, value: str, place: Path) -> list[str]:
    """A command line with a value for the argument, and something for the others that must be there."""
    them = [other for other in PARSERS[name]._actions if not other.option_strings]
    given = [value if other is action else str(place / str(other.dest)) for other in them]
    times = action.nargs if isinstance(action.nargs, int) else 1
    option = (
        [action.option_strings[0], *[value] * times]
        if times > 1
        else [f"{action.option_strings[0]}={value}"]
        if action.option_strings
        else []
    )
    others = [other for other in THAT_MUST_BE.get(name, []) if not option or not other.startswith(f"{option[0][:6]}")]
    return [*given, *others, *option]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is said, in one line, of an argument's value; nothing is made."""

    def run(name: str, action: argparse.Action, value: str) -> str:
        assert script(name).main(line(name, action, value, tmp_path)) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and len(printed.err.splitlines()) == 1
        assert not list(tmp_path.iterdir())
        return printed.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_has_a_reader(name: str) -> None:
    for action in PARSERS[name]._actions:
        if action.nargs != 0 and action.choices is None:
            assert isinstance(action.type, Argument), action.dest
            assert action.type.name in (action.option_strings or [action.metavar])


def test_numbers_are_read_as_they_are_typed_and_in_range(refused: Callable[..., str]) -> None:
    assert len(NUMBERS) > 60
    for name, action in NUMBERS:
        kind = action.type
        assert isinstance(kind, Argument) and kind.low is not None and kind.high is not None
        assert kind(f"{kind.low:.15g}") == kind.low
        if kind.low >= 0:
            assert kind(f"0{kind.low:.15g}") == kind.low  # decimal, whatever it begins with
        for odd in ("nan", "inf", "-inf", "", "0x10", "1_0", "1e999", "many", f"{kind.low - 1:g}", "1000000000000"):
            if action.nargs == 2 and odd.startswith("-"):
                continue  # to argparse an option
            said = refused(name, action, odd)
            assert said.startswith(f"{kind.name} is ") and "; expected " in said


def test_a_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(PATHS) > 2 * len(NAMES)
    for name, action in PATHS:
        given = PARSERS[name].parse_args(line(name, action, "~/a", tmp_path))
        assert getattr(given, action.dest) == tmp_path / "a", (name, action.dest)
        assert "expected a user of this machine after ~" in refused(name, action, "~no-such-user/a")


def test_paths_that_are_none(refused: Callable[..., str]) -> None:
    for name, action in PATHS:
        for odd in ("", "a\0b", "a\ud800b"):
            said = refused(name, action, odd)
            assert " is " in said and "expected " in said and "\0" not in said
        assert "at most 255 bytes" in refused(name, action, "a/" + "b" * 256)
        if action.dest != "out" or name == "synthesize":
            assert "expected a path on this machine, not a url" in refused(name, action, "s3://bucket/folder")


def test_a_place_that_cannot_be_written_is_told_before_work(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in NAMES:
        (out,) = (action for action in PARSERS[name]._actions if action.dest == "out")
        for place in ("/proc/x", "/dev/null/x"):
            assert "cannot be written: " in refused(name, out, place)


@pytest.mark.parametrize("place", ["/", "b" * 250])
def test_an_out_that_leaves_no_name_for_what_is_unfinished(refused: Callable[..., str], place: str) -> None:
    (out,) = (action for action in PARSERS["fsdd"]._actions if action.dest == "out")
    assert "; expected " in refused("fsdd", out, place)


# Errors of the system


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """A command line over a small set."""
    (tmp_path / "in").mkdir()
    for take in (1, 7):
        soundfile.write(tmp_path / "in" / f"3_theo_{take}.wav", np.zeros(1000, np.int16), 8000)
    return [str(tmp_path / "in"), str(tmp_path / "out"), "--workers=1"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EACCES, "Permission denied", "a\x1bb"), r"a\x1bb: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a", None, "b"), "a: b: File name too long"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "there is not enough memory for what was asked for"),
    ],
)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "synthesize"])
def test_what_the_system_says_is_one_line(
    name: str,
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def find(given: argparse.Namespace) -> Any:
        raise error

    module = script(name)
    monkeypatch.setattr(module, "find", find)
    assert module.main([str(tmp_path), str(tmp_path / "out"), *THAT_MUST_BE.get(name, [])]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_stdout_without_room(
    digits: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "__stdout__", full)
        assert script("fsdd").main(digits) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: stdout: {os.strerror(errno.ENOSPC)}"


def test_a_stdout_that_nobody_reads(
    digits: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        monkeypatch.setattr(sys, "__stdout__", unread)
        assert script("fsdd").main(digits) == 141
        assert "error" not in capsys.readouterr().err
