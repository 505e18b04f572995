"""A process in which Triton interprets its kernels, for the tests of a module that run them on a CPU."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., None]]:
    """Calls a function of a test module where Triton interprets; what it raises is raised here.

    In a process of its own: TRITON_INTERPRET has to be set before anything imports triton, and would break
    torch.compile in this one.
    """
    pytest.importorskip("triton")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(torch.set_num_threads, 1).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
