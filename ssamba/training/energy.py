"""The energy that a run takes, where its machine reports it."""

import time
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of processors (RAPL) to those who may read them, often root alone."""
_SECONDS = 1.0  # from one reading to the next, at least: a counter starts again after many minutes, a GPU tells no sum


class EnergyMeter:
    """Joules since this was made: of all that the machine's processors took, by their own counters, and of the first
    `gpus` GPUs, by their power at each reading. What other processes took is in it."""

    def __init__(self, gpus: int, powercap: Path = POWERCAP) -> None:
        # A package is intel-rapl:0, on AMD as well; intel-rapl:0:0 is a part of it.
        packages = [path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1]
        known = {path: _read(path / "energy_uj") for path in packages}
        self._counters = {path: count for path, count in known.items() if count is not None}
        self._gpus = gpus
        self._since = time.perf_counter()
        readable = _power(0) is not None if gpus else bool(self._counters)
        self.joules: float | None = 0.0 if readable else None
        """None where it cannot be read: on GPUs from their power, else from the counters."""

    def read(self, at_once: bool = False) -> None:
        """To be called often; at_once: however short the last time was ago."""
        elapsed = time.perf_counter() - self._since
        if self.joules is None or (elapsed < _SECONDS and not at_once):
            return
        self._since += elapsed
        for path, last in self._counters.items():
            if (now := _read(path / "energy_uj")) is not None:
                most = _read(path / "max_energy_range_uj") or 0
                self.joules += (now - last if now >= last else now - last + most) / 1e6
                self._counters[path] = now
        for gpu in range(self._gpus):
            self.joules += (_power(gpu) or 0.0) * elapsed


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _power(gpu: int) -> float | None:
    """What a GPU takes just now, in W; None where its driver, or the package that reads it, does not report it."""
    try:
        return torch.cuda.power_draw(gpu) / 1000
    except Exception:  # of NVML, which knows many, or of the want of it
        return None
