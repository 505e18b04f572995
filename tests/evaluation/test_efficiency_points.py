"""One point of `ssamba bench efficiency`: what is measured, and what ends it. No test looks at a time."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ssamba.evaluation.efficiency_points import (
    KINDS,
    PASSES,
    PLAIN,
    ROWS,
    Limits,
    Measured,
    Point,
    attention_of,
    make_encoder,
    measure_apart,
    measure_here,
    memory_limited,
    spare_memory,
)

FAR = 1e12  # a deadline
MIB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits a process's memory")


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("encoder", KINDS)
def test_every_encoder_is_measured(encoder: str, passes: str) -> None:
    times, peak = measure_here(Point(encoder, "nano", passes, 2, 24), "cpu", 2, FAR, None)
    assert len(times) == 2 and min(times) > 0
    assert sys.platform != "linux" or (peak is not None and peak >= 0)


def test_without_time_for_another_call_the_first_counts() -> None:
    times, _ = measure_here(Point("ssast", "nano", "forward", 1, 24), "cpu", 5, 0.0, None)
    assert len(times) == 1


@pytest.mark.parametrize("tokens", [8, 24, 512])
def test_a_clip_has_so_many_tokens(tokens: int) -> None:
    encoder = make_encoder(Point(PLAIN, "nano", "forward", 1, tokens), "cpu")
    rows, columns = encoder.grid
    assert rows == ROWS and rows * columns == tokens and encoder.arguments["encoder"] == "ssast"


def test_plain_attention_computes_the_same() -> None:
    encoder, clips = make_encoder(Point("ssast", "nano", "forward", 2, 64), "cpu"), torch.randn(2, 128, 128)
    outputs = []
    for kind in ("ssast", PLAIN):
        with attention_of(kind), torch.inference_mode():
            outputs.append(encoder(clips).tokens)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@on_linux
def test_plain_attention_has_its_matrices_in_memory() -> None:
    peaks = {}
    for kind in ("ssast", PLAIN):
        _, peaks[kind] = measure_here(Point(kind, "nano", "forward", 1, 1536), "cpu", 1, FAR, None)
    assert peaks[PLAIN] is not None and peaks["ssast"] is not None
    assert peaks[PLAIN] - peaks["ssast"] > 3 * 1536**2 * 4  # heads, tokens, tokens, bytes


@on_linux
def test_memory_is_refused_while_it_is_limited() -> None:
    with memory_limited(64 * MIB):
        torch.ones(32 * MIB // 4)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(256 * MIB // 4)
    assert len(torch.ones(256 * MIB // 4)) > 0
    with memory_limited(None):
        torch.ones(256 * MIB // 4)


def test_a_process_of_its_own_measures_a_point() -> None:
    point, limits = Point("ssamba", "nano", "forward+backward", 1, 16), Limits(300)
    measured = measure_apart(point, "cpu", 1, 3, limits)
    assert measured.point == point and measured.status == "done" and measured.because == ""
    assert len(measured.seconds) == 3 and measured.most_seconds == 300
    if sys.platform == "linux":
        assert measured.bytes and measured.most_bytes and 0 < measured.most_bytes < 2**50


@on_linux
def test_a_point_that_needs_more_memory_is_told() -> None:
    measured = measure_apart(Point(PLAIN, "nano", "forward", 1, 4096), "cpu", 1, 1, Limits(300, MIB))
    assert (measured.status, measured.seconds, measured.bytes) == ("out of memory", [], None)
    assert "can't allocate memory" in measured.because and measured.most_bytes == MIB


def test_a_point_that_takes_longer_is_ended() -> None:
    began = time.monotonic()
    measured = measure_apart(Point("ssamba", "base", "forward", 1, 76800), "cpu", 1, 1, Limits(0.1))
    assert measured.status == "out of time" and measured.because == "not done after 0.1 s"
    assert time.monotonic() - began < 60 and not multiprocessing.active_children()


def test_a_point_that_fails_says_how() -> None:
    measured = measure_apart(Point("ssamba", "giant", "forward", 1, 8), "cpu", 1, 1, Limits(300))
    assert (measured.status, measured.because) == ("failed", "KeyError: 'giant'")


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, "out of memory"), (signal.SIGTERM, "failed")])
def test_a_process_that_is_killed_was_killed_for_its_memory(how: signal.Signals, status: str) -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        assert children[0].pid
        os.kill(children[0].pid, how)

    killer = threading.Thread(target=kill)
    killer.start()
    measured = measure_apart(Point("ssamba", "nano", "forward", 1, 8), "cpu", 1, 1, Limits(300))
    killer.join()
    assert (measured.status, measured.because) == (status, f"its process ended with {-how}")


@pytest.mark.parametrize(
    ("status", "limits", "stands"),
    [
        ("done", Limits(1e6, 2**40), True),
        ("failed", Limits(10), False),
        ("out of time", Limits(60), True),
        ("out of time", Limits(61), False),
        ("out of time", Limits(10, 2**40), True),
        ("out of memory", Limits(1e6), True),
        ("out of memory", Limits(60, 1000), True),
        ("out of memory", Limits(60, 1001), False),
    ],
)
def test_what_is_known_within_other_limits(status: str, limits: Limits, stands: bool) -> None:
    measured = Measured("ssast", "tiny", "forward", 1, 512, status, 60.0, 1000)  # type: ignore[arg-type]
    assert measured.stands(limits) is stands


def test_spare_memory_is_the_least_of_the_machines_and_the_control_groups(tmp_path: Path) -> None:
    assert spare_memory(tmp_path) is None
    gib = 2**30
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {10 * 2**20} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("1:cpu:/old\n0::/batch/job7\n")
    assert spare_memory(tmp_path) == 8 * gib
    job = tmp_path / "sys" / "fs" / "cgroup" / "batch" / "job7"
    job.mkdir(parents=True)
    for folder, most in ((job, "max"), (job.parent, str(6 * gib))):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text(f"{3 * gib}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {gib}\n")
    assert spare_memory(tmp_path) == 2 * gib  # 6 - 3 + 1, less 2
    (job / "memory.max").write_text(f"{gib}\n")
    assert spare_memory(tmp_path) == 0
