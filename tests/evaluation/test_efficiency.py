"""What measures speed, memory and errors, and `ssamba bench`. No test looks at a time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.cli import main
from ssamba.evaluation import efficiency
from ssamba.evaluation.efficiency import (
    Goal,
    ScanShape,
    exact,
    goals_table,
    interleaved_times,
    measure_peaks,
    median_ratio,
    peak_memory,
    relative_errors,
    scan_inputs,
    scan_operator,
    value_and_gradients,
)

Capture = pytest.CaptureFixture[str]
MIB = 2**20
TINY = ["--batch", "1", "--tokens", "20", "--width", "8", "--states", "4", "--rounds", "2", "--threads", "1"]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory")


def test_every_round_calls_all_functions_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "LEAST_SECONDS", 0.0)  # one call a measurement
    called: list[str] = []
    functions = {name: lambda name=name: called.append(name) for name in "abc"}
    times = interleaved_times(functions, 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(value > 0 for values in times.values() for value in values)
    assert "".join(called) == "aabbcc" + 3 * "abc"


def test_a_fast_function_is_called_several_times_a_measurement() -> None:
    called: list[int] = []
    interleaved_times({"fast": lambda: called.append(0)}, 1)
    assert len(called) > 100


def test_ratios_are_taken_round_by_round() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 1.0]) == 3.0


@on_linux
@pytest.mark.parametrize("pieces", [1, 32])
def test_peak_memory_sees_what_a_call_takes_and_frees(pieces: int) -> None:
    def work() -> None:
        held = [torch.ones(32 * MIB // 4 // pieces) for _ in range(pieces)]
        held += [piece + 1 for piece in held]  # twice as much for a moment

    for _ in range(3):  # each takes what the one before freed
        work()
        peak = peak_memory(work)
        assert peak is not None and peak / MIB == pytest.approx(64, abs=2)
    assert peak_memory(lambda: None) < MIB


def test_peak_memory_is_unknown_where_the_system_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert peak_memory(lambda: None) is None


def test_errors_are_relative_to_the_scale_of_each_tensor() -> None:
    wanted = {"y": torch.tensor([4.0, -8.0]), "flat": torch.zeros(2), "same": torch.tensor([3.0])}
    found = {"y": torch.tensor([5.0, -8.0]), "flat": torch.tensor([0.0, -0.5]), "same": torch.tensor([3.0])}
    assert relative_errors(found, wanted) == {"y": 0.125, "flat": 0.5, "same": 0.0}


@pytest.mark.parametrize("directions", [1, 2])
def test_every_backend_is_close_to_float64(directions: int) -> None:
    inputs = scan_inputs(ScanShape(directions, 2, 19, 5, 3))
    dout = torch.randn(2, 19, 5, generator=torch.Generator().manual_seed(1))
    wanted = exact(inputs, dout)
    assert wanted.keys() == {"y", *inputs} and all(x.dtype == torch.float64 for x in wanted.values())
    doubles = {name: x.double() for name, x in inputs.items()}
    chunked = value_and_gradients(scan_operator(doubles, "torch-chunked"), doubles, dout.double())
    assert max(relative_errors(chunked, wanted).values()) < 1e-12
    for backend in ("reference", "torch-chunked", "cpu"):
        found = value_and_gradients(scan_operator(inputs, backend), inputs, dout)
        assert 0 < max(relative_errors(found, wanted).values()) < 1e-5, backend


def test_inputs_have_the_dtypes_that_autocast_gives_them() -> None:
    inputs = scan_inputs(ScanShape(2, 1, 3, 5, 7), torch.bfloat16)
    assert {name for name, x in inputs.items() if x.dtype == torch.float32} == {"A", "D", "delta_bias"}
    assert inputs["u"].shape == (2, 1, 3, 5) and inputs["z"].shape == (1, 3, 5) and inputs["C"].shape == (2, 1, 3, 7)
    assert (inputs["A"] < 0).all()


def test_rooflines_are_sums_of_the_peaks() -> None:
    peaks = measure_peaks(1)
    assert peaks.fma > 0 and peaks.exp > 0
    assert efficiency.Peaks(fma=0.5, exp=3.0).rooflines() == {"forward": 5.0, "forward_backward": 14.0}


def test_goals_know_whether_they_are_met() -> None:
    goals = [
        Goal("ratio", ">=", 30, 30),
        Goal("ratio", ">=", 30, 29),
        Goal("error", "<=", 5e-7, 4.2e-7),
        Goal("error", "<=", 5e-7, 6e-7),
    ]
    assert [goal.met for goal in goals] == [True, False, True, False]
    lines = goals_table(goals).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[4].split("|")[1:-1] == [" error    ", " <= 5e-07 ", " 4.2e-07  ", " yes "]


@pytest.mark.parametrize("both", [False, True])
def test_bench_scan_prints_a_table_and_writes_everything(both: bool, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "scan.json"
    assert main(["bench", "scan", *TINY, "--out", str(out), *(["--bidirectional"] if both else [])]) == 0
    result = json.loads(out.read_text())
    assert result["shape"] == {"directions": 1 + both, "batch": 1, "tokens": 20, "width": 8, "states": 4}
    assert result["hardware"]["threads"] == 1 and torch.__version__.startswith(result["versions"]["torch"])
    assert set(result["rooflines_ns"]) == {"forward", "forward_backward"} and set(result["peaks_ns"]) == {"fma", "exp"}
    assert {*result["backends"], *result["unavailable"]} == set(efficiency.SCAN_BACKENDS)
    assert {"reference", "torch-chunked", "cpu"} <= result["backends"].keys()
    assert result["unavailable"]["mamba-ssm"] == "it does not run on cpu"
    printed = capsys.readouterr().out
    for name, found in result["backends"].items():
        assert found["errors"].keys() == {"y", "u", "delta", "A", "B", "C", "D", "z", "delta_bias"}
        assert max(found["errors"].values()) < 1e-5
        assert len(found["forward_ns_rounds"]) == len(found["forward_backward_ns_rounds"]) == 2
        assert f"| {name} " in printed and f"{found['forward_ns']:.3f}" in printed
    assert "mamba-ssm cannot run: it does not run on cpu" in printed and "1 exp" in printed


def test_bench_scan_in_half_precision_and_of_one_backend(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    words = ["bench", "scan", *TINY, "--dtype", "bfloat16", "--backends", "cpu", "--out", str(out)]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert result["dtype"] == "bfloat16" and list(result["backends"]) == ["cpu"]
    # The output is rounded to 8 bits, and compared with float64 on the same rounded inputs.
    assert 1e-4 < result["backends"]["cpu"]["errors"]["y"] < 2**-8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backends", "cpu", "numpy"], "unknown scan backend numpy; expected some of reference"),
        (["--backends", "auto"], "unknown scan backend auto"),
        (["--backends", "mamba-ssm"], "mamba-ssm: it does not run on cpu"),
        (["--batch", "many"], "--batch is many; expected a whole number"),
        (["--batch", "0"], "--batch is 0"),
        (["--tokens", "-3"], "--tokens is -3"),
        (["--states", "65"], "no more than 64 states"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--out", "nowhere/scan.json"], "there is no folder nowhere"),
        pytest.param(
            ["--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bench_scan_tells_mistakes(words: list[str], said: str, capsys: Capture) -> None:
    assert main(["bench", "scan", *TINY, *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("ssamba: ") and said in told.err


@pytest.mark.parametrize("words", [[], ["conv"], ["scan", "--dtype", "float64"]])
def test_bench_of_something_else_exits_with_2_and_the_usage(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ssamba bench")
