"""`ssamba bench efficiency`: which points are measured and kept, and what is told of them. Points are made up here, but
one; tests/evaluation/test_efficiency_points.py measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.cli import main
from ssamba.commands import bench
from ssamba.config import MODEL_SIZES
from ssamba.evaluation import efficiency_points, efficiency_report, efficiency_runs
from ssamba.evaluation.efficiency_points import KINDS, PASSES, ROWS, Limits, Measured, Point

Capture = pytest.CaptureFixture[str]
MIB = 2**20


class Machine:
    """Measures points by formulas; `broken` fail, and each of `interrupts` is a number of points after which it is
    interrupted."""

    def __init__(self) -> None:
        self.measured: list[Point] = []
        self.broken: set[str] = set()
        self.interrupts: list[int] = []

    def __call__(self, point: Point, device: str, threads: int, rounds: int, limits: Limits) -> Measured:
        if len(self.measured) in self.interrupts:
            self.interrupts.remove(len(self.measured))
            raise KeyboardInterrupt
        self.measured.append(point)
        encoder, _, passes, batch, tokens = point
        attends = encoder.startswith(("ssast", "conformer"))
        cost = batch * (1 + 2 * (passes == PASSES[1]))
        seconds = cost * (tokens**2 * 1e-7 if attends else tokens * 1e-3)
        taken = cost * MIB * (tokens**2 if encoder == "ssast-plain" else 20 * tokens) // 1000
        most = (limits.most_seconds, limits.most_bytes)
        if encoder in self.broken:
            return Measured(*point, "failed", *most, because="ValueError: a pity")
        if limits.most_bytes and taken > limits.most_bytes:
            return Measured(*point, "out of memory", *most, because="no room")
        if seconds > limits.most_seconds:
            return Measured(*point, "out of time", *most, because="too slow")
        return Measured(*point, "done", *most, [seconds] * rounds, taken)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(efficiency_runs, "measure_apart", made)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "efficiency"


def call(out: Path, *words: str) -> int:
    return main(["bench", "efficiency", "--out", str(out), "--threads", "1", "--rounds", "2", *words])


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def statuses(out: Path) -> dict[tuple[str, int, int], str]:
    return {(one["encoder"], one["batch"], one["tokens"]): one["status"] for one in results(out)["points"]}


def rows(out: Path) -> list[list[str]]:
    """The cells of every row of every table of the report."""
    lines = (out / "results.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


SMALL = ["--encoders", "ssamba", "ssast", "--tokens", "16", "8", "--passes", "forward"]


def test_the_command_names_what_there_is() -> None:
    assert bench.KINDS == KINDS and bench.PASSES == PASSES and bench.ROWS == ROWS
    assert list(bench.SIZES) == ["nano", "tiny", "small", "base"] and set(MODEL_SIZES) == {*KINDS} - {"ssast-plain"}
    assert all(tokens % ROWS == 0 for tokens in bench.TOKENS) and bench.TOKENS[-1] == 76800


def test_points_are_measured_from_few_tokens_to_many_and_kept(machine: Machine, out: Path, capsys: Capture) -> None:
    assert call(out, *SMALL, "--batch", "2", "1", "2") == 0
    assert machine.measured == [
        Point(encoder, "tiny", "forward", batch, tokens)
        for tokens in (8, 16)
        for batch in (1, 2)
        for encoder in ("ssamba", "ssast")
    ]
    assert f"written to {out / 'results.md'}" in capsys.readouterr().out
    found = results(out)
    assert [one["seconds"] for one in found["points"][:2]] == [[0.008] * 2, [64e-7] * 2]
    assert found["setup"]["threads"] == 1 and found["setup"]["device"] == "cpu" and found["made"]["versions"]["torch"]
    assert sorted(path.name for path in out.iterdir()) == [
        "efficiency-tiny-batch1.png",
        "efficiency-tiny-batch2.png",
        "results.json",
        "results.md",
    ]
    # Again, and more: what is there stays as it is.
    assert call(out, *SMALL, "--tokens", "8", "32") == 0
    assert machine.measured[8:] == [Point(encoder, "tiny", "forward", 1, 32) for encoder in ("ssamba", "ssast")]
    assert results(out)["points"][:8] == found["points"] and len(results(out)["points"]) == 10


def test_what_was_interrupted_goes_on(machine: Machine, out: Path) -> None:
    machine.interrupts = [3]
    assert call(out, *SMALL) == 130
    assert len(results(out)["points"]) == 3 and not (out / "results.md").exists()
    assert call(out, *SMALL) == 0
    assert len(machine.measured) == 4 == len(set(machine.measured)) == len(results(out)["points"])


def test_what_is_larger_than_what_failed_is_not_tried(machine: Machine, out: Path) -> None:
    words = ["--encoders", "ssast-plain", "--passes", "forward", "--tokens", "400", "800", "1600", "--batch", "1", "4"]
    assert call(out, *words, "--most-gigabytes", str(700 * MIB / 1e9)) == 0
    wanted = {
        (1, 400): "done",
        (4, 400): "done",
        (1, 800): "done",
        (4, 800): "out of memory",
        (1, 1600): "out of memory",
        (4, 1600): "out of memory",
    }
    assert statuses(out) == {("ssast-plain", *key): status for key, status in wanted.items()}
    assert [point[3:] for point in machine.measured] == [(1, 400), (4, 400), (1, 800), (4, 800), (1, 1600)]
    implied = results(out)["points"][-1]
    assert implied["because"] == "as batch 4, 800 tokens" and implied["seconds"] == []
    # Within larger limits it is tried again, and only that.
    machine.measured.clear()
    assert call(out, *words, "--most-gigabytes", str(4000 * MIB / 1e9)) == 0
    assert [point[3:] for point in machine.measured] == [(4, 800), (1, 1600), (4, 1600)]
    assert statuses(out)["ssast-plain", 4, 1600] == "out of memory"
    assert {status for key, status in statuses(out).items() if key[1:] != (4, 1600)} == {"done"}


def test_what_takes_too_long_is_told_of_larger_ones_too(machine: Machine, out: Path) -> None:
    words = ["--encoders", "ssast", "ssamba", "--passes", "forward", "--tokens", "8000", "16000", "32000"]
    assert call(out, *words, "--most-seconds", "20") == 0
    assert len(machine.measured) == 5  # the largest is not tried of ssast, and of ssamba for the first time
    assert [status for key, status in statuses(out).items() if key[0] == "ssast"] == ["done", *["out of time"] * 2]
    assert ["16,000", "16", "over 20 s"] in rows(out)
    machine.measured.clear()
    assert call(out, *words, "--most-seconds", "50") == 0
    assert [point[::4] for point in machine.measured] == [("ssast", 16000), ("ssast", 32000), ("ssamba", 32000)]


def test_a_point_that_fails_is_told_and_measured_again(machine: Machine, out: Path, capsys: Capture) -> None:
    machine.broken = {"ssast"}
    assert call(out, *SMALL) == 1
    said = capsys.readouterr().out
    assert "failed: ssast tiny, forward, batch 1, 8 tokens: ValueError: a pity" in said and "failed: ssamba" not in said
    machine.broken.clear()
    machine.measured.clear()
    assert call(out, *SMALL) == 0 and len(machine.measured) == 2
    assert set(statuses(out).values()) == {"done"}


def test_the_report_has_exponents_and_where_lines_cross(machine: Machine, out: Path) -> None:
    tokens = ["512", "2048", "8192", "16384", "32768"]
    assert call(out, "--tokens", *tokens, "--most-gigabytes", "10000") == 0
    found = results(out)
    assert len(found["points"]) == len(KINDS) * 2 * 5
    exponents = {(one["encoder"], one["passes"], one["quantity"]): one["growth"]["exponent"] for one in found["growth"]}
    for encoder in KINDS:
        attends = encoder.startswith(("ssast", "conformer"))
        for passes in PASSES:
            assert exponents[encoder, passes, "seconds"] == pytest.approx(1 + attends)
            assert exponents[encoder, passes, "bytes"] == pytest.approx(1 + (encoder == "ssast-plain"), abs=1e-3)
    crossed = {(one["than"], one["passes"]): one["crossing"] for one in found["crossings"]}
    assert crossed.keys() == {(kind, passes) for kind in KINDS[1:] for passes in PASSES}
    assert crossed["ssast", "forward"]["tokens"] == pytest.approx(10_000)
    assert crossed["ssast", "forward"]["between"] == [8192, 16384]
    assert crossed["aum", "forward"]["tokens"] is None  # as fast is not faster, and JSON has no infinity
    exact = "1.00 [1.00, 1.00]"
    assert ["ssamba tiny, batch 1", "forward", exact, exact, "8,192 to 32,768"] in rows(out)
    crossed_at = "10,000 [10,000, 10,000], between 8,192 and 16,384"
    assert ["ssast tiny, batch 1", "forward", crossed_at] in rows(out)
    assert ["512", "0.512", "0.512", "0.0262", "0.0262", "0.0262", "0.512", "0.512"] in rows(out)
    text = (out / "results.md").read_text()
    assert "![tiny, batch 1](efficiency-tiny-batch1.png)" in text and efficiency_report.PUBLISHED in text


def test_published_figures_stand_beside_what_they_are_of_alone(machine: Machine, out: Path) -> None:
    assert call(out, *SMALL, "--sizes", "nano") == 0
    assert efficiency_report.PUBLISHED not in (out / "results.md").read_text()
    # At 22,000 tokens the paper's own words are 92.7 % faster and 95.4 % less memory.
    tokens = efficiency_report.PUBLISHED_TOKENS
    (ours, ours_taken), (theirs, theirs_taken) = (
        efficiency_report.PUBLISHED_POINTS[kind, "tiny"] for kind in ("ssamba", "ssast-plain")
    )
    at = tokens.index(20_000)
    assert 1 - ours[at] / theirs[at] == pytest.approx(0.92, abs=0.01)
    assert 1 - ours_taken[at] / theirs_taken[at] == pytest.approx(0.948, abs=0.005)


@pytest.mark.drawn
def test_a_picture_shows_medians_ends_and_what_is_published(
    machine: Machine, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ssamba.evaluation.pictures.save_figure", lambda figure, path: drawn.append(figure))
    words = ["--encoders", "ssamba", "ssast-plain", "--tokens", "512", "1024", "2048", "--most-gigabytes", "2"]
    assert call(out, *words) == 0
    (figure,) = drawn
    assert [axis.get_title() for axis in figure.axes] == ["forward"] * 2 + ["forward+backward"] * 2
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["time (s)", "peak memory (MiB)"]
    assert {(axis.get_xscale(), axis.get_yscale(), axis.get_xlabel()) for axis in figure.axes} == {
        ("log", "log", "tokens")
    }
    lines = figure.axes[0].get_lines()
    assert lines[0].get_xdata().tolist() == [512, 1024, 2048]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.512, 1.024, 2.048])
    (stars,) = [line for line in lines if line.get_marker() == "*" and line.get_color() == "C0"]
    assert stars.get_xdata()[0] == 5000 and stars.get_ydata()[0] == 0.1
    # ssast-plain has no room for 2,048 tokens: a cross at the edge.
    (cross,) = [line for line in lines if line.get_marker() == "x" and line.get_color() == "C3"]
    assert cross.get_xdata().tolist() == [2048]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"ssamba", "ssast-plain", "ssamba, published (batch 4, a GPU)", "out of memory"} <= set(names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "512", "513"], "--tokens is 513; expected a multiple of 8"),
        (["--tokens", "0"], "--tokens is 0; expected at least 8"),
        (["--batch", "many"], "--batch is many; expected a whole number"),
        (["--most-seconds", "0"], "--most-seconds is 0; expected at least 1"),
        (["--most-gigabytes", "-1"], "--most-gigabytes is -1; expected at least"),
        pytest.param(
            ["--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_any_work(
    words: list[str], said: str, out: Path, machine: Machine, refused: Callable[..., str]
) -> None:
    assert said in refused("bench", "efficiency", "--out", out, *words)
    assert not machine.measured


@pytest.mark.parametrize("words", [["--sizes", "large"], ["--encoders", "lstm"], ["--passes", "backward"]])
def test_what_there_is_not_exits_with_the_usage(words: list[str], out: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(out, *words)
    assert stopped.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(
    machine: Machine, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.md").write_text("precious")
    for words in ([], ["--overwrite"]):
        assert "mine holds no results.json" in refused("bench", "efficiency", "--out", tmp_path / "mine", *words)
    assert "is no folder" in refused("bench", "efficiency", "--out", tmp_path / "mine" / "thesis.md")
    (tmp_path / "mine" / "results.json").write_text('{"setup": {}, "points": [{"encoder": 3}]}')
    assert "results.json cannot be used" in refused("bench", "efficiency", "--out", tmp_path / "mine")


def test_points_of_another_machine_are_not_mixed(
    machine: Machine, out: Path, refused: Callable[..., str], capsys: Capture
) -> None:
    assert call(out, *SMALL) == 0
    words = ["bench", "efficiency", "--out", str(out), *SMALL]
    said = refused(*words, "--threads", "2")
    assert "holds points of threads 1 (here 2); expected another --out, or --overwrite to begin anew" in said
    assert main([*words, "--threads", "2", "--overwrite", "--tokens", "8"]) == 0
    assert results(out)["setup"]["threads"] == 2 and len(results(out)["points"]) == 2
    torch.set_num_threads(1)


def test_overwrite_begins_anew(machine: Machine, out: Path) -> None:
    assert call(out, *SMALL, "--batch", "2") == 0
    assert call(out, *SMALL, "--overwrite") == 0
    assert {key[1] for key in statuses(out)} == {1} and not (out / "efficiency-tiny-batch2.png").exists()


def test_a_point_is_measured_by_the_command(out: Path, capsys: Capture) -> None:
    words = ["--encoders", "ssast", "--sizes", "nano", "--tokens", "8", "--passes", "forward", "--most-seconds", "300"]
    assert call(out, *words) == 0
    (point,) = results(out)["points"]
    assert point["status"] == "done" and len(point["seconds"]) == 2
    assert efficiency_points.Point("ssast", "nano", "forward", 1, 8) == Point(*[point[name] for name in Point._fields])
    assert "ssast nano, forward, batch 1, 8 tokens: " in capsys.readouterr().err
