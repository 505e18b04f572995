"""`ssamba doctor` as a whole: its findings here, its files and its status."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssamba.cli import main
from ssamba.doctor import report
from ssamba.doctor.findings import Finding, absent, ok, problem


def one_of_each() -> Iterator[Finding]:
    yield ok("kernel", "as the reference")
    yield absent("PyAV", "not installed", "pip install it")
    yield problem("cache", "cannot be written\x1b[2J", "name another folder")


def fails() -> Iterator[Finding]:
    yield ok("first", "well")
    raise OSError("no such library")


def test_all_is_well_where_the_tests_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything, with a training of two steps: what the test suite needs is here."""
    out = tmp_path / "doctor.json"
    status = main(["doctor", "--json", str(out)])
    said, told = capsys.readouterr().out, json.loads(out.read_text())
    found: dict[str, list[dict[str, Any]]] = told["checks"]
    assert (status, told["problems"]) == (0, 0) and "0 problems" in said
    assert list(found) == list(report.CHECKS)
    assert all(
        set(one) == {"name", "state", "said", "remedy"} and one["said"] for some in found.values() for one in some
    )
    assert [one["name"] for one in found["training"]] == ["two steps of pretraining"]
    for one in (one for some in found.values() for one in some):
        assert one["said"] in said


def test_a_problem_is_told_with_its_remedy_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "CHECKS", {"parts": one_of_each})
    assert main(["doctor", "--json", str(tmp_path / "found.json")]) == 1
    said = capsys.readouterr().out
    assert "ok       kernel  as the reference" in said and "-        PyAV    not installed (pip install it)" in said
    assert r"1 problem" + "\n" + r"  cache: cannot be written\x1b[2J. To mend it: name another folder" in said
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["problems"] == 1
    assert told["checks"]["parts"][2] == {
        "name": "cache",
        "state": "problem",
        "said": "cannot be written\x1b[2J",
        "remedy": "name another folder",
    }


def test_a_check_that_fails_ends_no_other() -> None:
    found = report.examine({"broken": fails, "parts": one_of_each})
    assert [one.state for one in found["broken"]] == ["ok", "problem"]
    assert found["broken"][1].said == "cannot be looked at: OSError: no such library"
    assert len(found["parts"]) == 3 and len(report.problems(found)) == 2


def test_a_file_is_not_replaced(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "found.json").write_text("mine")
    assert "found.json exists; --overwrite replaces it" in refused("doctor", "--json", tmp_path / "found.json")
