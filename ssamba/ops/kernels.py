"""What the CPU kernels share: how a call reaches them, and their tasks on threads.

A kernel is a C function of one pointer, to a description of the call: which task is the next, how many there are, and
the tensors (address, shape, strides). Each thread that runs it claims task after task until none is left, so a thread
that comes late or runs slowly takes fewer; which one took a task does not change its result.

On Linux the threads are those of torch's own OpenMP team: no second pool fights it for the cores, and threads that
have just run a torch operator need not be woken. OMP_WAIT_POLICY rules how long idle ones spin. Elsewhere, and in a
forked child, where that team is no more, they come from a small pool of Python threads; idle ones sleep.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A description is int64 words: the next task, the number of tasks, then for each argument its address, shape and
# strides (bytes), both of which have room for DIMENSIONS; a flag is one word.
DIMENSIONS = 5
HEADER = 2
SLOT = 1 + 2 * DIMENSIONS

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()


def _openmp() -> Callable[[int, int, int, int], None] | None:
    """libgomp's fork and join, (function, its argument, threads, 0), of the very library that torch runs on."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
        return function
    return None


worker_team = _openmp()


def _forget_threads() -> None:
    """A forked child has none of its parent's threads: it makes its own pool at its first call."""
    global _pool, _pool_size, _pool_lock, worker_team
    _pool, _pool_size, _pool_lock, worker_team = None, 0, threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run_tasks(kernel: Any, tasks: int, arguments: Sequence[Tensor | bool]) -> None:
    """Run the tasks of a compiled kernel (numba's `cfunc`) on as many threads as torch itself uses.

    Args:
        arguments: float32 tensors of at most `DIMENSIONS` dimensions, and flags, in the kernel's order.
    """
    global _pool, _pool_size
    threads = min(torch.get_num_threads(), tasks)
    if not threads:
        return
    words = [0, tasks]
    for argument in arguments:
        if isinstance(argument, Tensor):
            fill = [0] * (DIMENSIONS - argument.dim())
            words += [argument.data_ptr(), *argument.shape, *fill, *(4 * step for step in argument.stride()), *fill]
        else:
            words += [int(argument), *[0] * (SLOT - 1)]
    call = (ctypes.c_int64 * len(words))(*words)
    if threads == 1:
        kernel.ctypes(ctypes.addressof(call))
    elif worker_team is not None:
        worker_team(kernel.address, ctypes.addressof(call), threads, 0)
    else:
        with _pool_lock:
            if _pool is None or _pool_size < threads - 1:
                _pool, _pool_size = ThreadPoolExecutor(threads - 1, thread_name_prefix="scan"), threads - 1
            others = [_pool.submit(kernel.ctypes, ctypes.addressof(call)) for _ in range(threads - 1)]
        kernel.ctypes(ctypes.addressof(call))
        for other in others:
            other.result()


def as_float(x: Tensor, width: int) -> Tensor:
    """x in float32, its last dimension contiguous and `width` long (zeros beyond its own); copied if needed."""
    x = x.detach().to(torch.float32)
    if x.shape[-1] != width:
        x = torch.nn.functional.pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()
