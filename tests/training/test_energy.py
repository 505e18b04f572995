"""The energy of a run, by counters and powers that stand in for a machine's."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssamba.training import energy
from ssamba.training.energy import EnergyMeter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def package(folder: Path, name: str, counted: int) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{counted}\n")
    (folder / name / "max_energy_range_uj").write_text("50000000\n")
    return folder / name / "energy_uj"


def test_counters_of_all_processors_are_added_up_beyond_their_range(tmp_path: Path, clock: SimpleNamespace) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 49_000_000), package(tmp_path, "intel-rapl:1", 0)
    package(tmp_path, "intel-rapl:0:0", 7)  # a part of the first
    meter = EnergyMeter(0, tmp_path)
    first.write_text("1000000")  # has begun again
    second.write_text("4000000")
    clock.now += 0.5
    meter.read()
    assert meter.joules == 0  # read a moment ago
    clock.now += 0.6
    meter.read()
    assert meter.joules == pytest.approx(2 + 4)
    second.write_text("4500000")
    meter.read(at_once=True)
    assert meter.joules == pytest.approx(6.5)


def test_the_power_of_gpus_counts_for_the_time_since_it_was_read(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = package(tmp_path, "intel-rapl:0", 0)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda gpu: [300_000, 100_000][gpu])  # mW
    meter = EnergyMeter(2, tmp_path)
    clock.now += 10
    counter.write_text("1000000")
    meter.read()
    assert meter.joules == pytest.approx(10 * 400 + 1)


def test_what_is_not_told_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EnergyMeter(0, tmp_path / "none").joules is None
    package(tmp_path, "intel-rapl:0", 0).unlink()
    assert EnergyMeter(0, tmp_path).joules is None

    def refused(gpu: int) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "power_draw", refused)
    package(tmp_path, "intel-rapl:0", 0)
    meter = EnergyMeter(1, tmp_path)  # the processor alone would be told, and the GPU is what counts
    meter.read(at_once=True)
    assert meter.joules is None
