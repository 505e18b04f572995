"""Lists of trials: what is read, and what is told of others."""

from pathlib import Path

import pytest

from ssamba.data.trials import Trial, find_trial_recordings, read_trials
from ssamba.errors import UserError


def listed(folder: Path, text: str) -> Path:
    path = folder / "trials.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n",
        "\ufeff1 a/1.wav a/2.wav\r\n\r\n0 a/1.wav b/1.wav",
        "a/1.wav a/2.wav target\na/1.wav\tb/1.wav\tnontarget\n",
        "1  a/1.wav  a/2.wav\na/1.wav b/1.wav imposter\n",
    ],
)
def test_lists_of_both_kinds(text: str, tmp_path: Path) -> None:
    expected = [Trial("a/1.wav", "a/2.wav", True), Trial("a/1.wav", "b/1.wav", False)]
    assert read_trials(listed(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 a b\nyes a b\n2 a b\n", ["2 lines are no trials; expected `1 FIRST SECOND`", "line 2: yes a b"]),
        ("1 a b\n0 a\n", ["line 2: 0 a"]),
        ("1 a b\n0 a b c\n", ["line 2: 0 a b c"]),
        ("1 a b\n1 a c\n", ["has 2 trials, of one kind; expected some of one speaker and some of two"]),
        ("", ["has no trial; expected"]),
        ("x\n" * 20, ["20 lines are no trials", "and 12 more"]),
    ],
)
def test_what_is_no_list(text: str, told: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_trials(listed(tmp_path, text))
    assert all(part in str(raised.value) for part in told)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "bytes"):
        with pytest.raises(UserError, match="cannot be read"):
            read_trials(path)


def test_recordings_are_relative_to_a_folder_or_whole(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    whole = str(tmp_path / "a.wav")
    trials = [Trial("a.wav", whole, True), Trial("a.wav", "b.wav", False), Trial("c.wav", "b.wav", False)]
    assert find_trial_recordings(trials[:1], tmp_path, Path("list")) == {"a.wav": whole, whole: whole}
    with pytest.raises(UserError, match="2 of the 4 recordings that list names are not in .*: b.wav, c.wav; expected"):
        find_trial_recordings(trials, tmp_path, Path("list"))
