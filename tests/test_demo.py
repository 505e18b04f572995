"""What `ssamba demo` refuses; tests/test_wheel.py runs it from recordings to its page."""

from pathlib import Path

import pytest

from ssamba.cli import main


@pytest.mark.parametrize("case", ["no such data", "not a demo"])
def test_a_mistake_is_told_before_anything_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if case == "not a demo":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    data = ["--data", str(tmp_path / "nowhere")] if case == "no such data" else []
    assert main(["demo", "--out", str(out), *data]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and ("nowhere" if case == "no such data" else str(out)) in said
    assert not out.exists() or [path.name for path in out.iterdir()] == ["thesis.txt"]
