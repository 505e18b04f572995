"""The scripts of benchmarks/, as modules."""

import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Name -> the script of that name. What a script sets for its whole process is as it was afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    yield importlib.import_module
    logging.disable(disabled)
    torch.set_num_threads(threads)
