"""What the CPU kernels share: tensors seen as arrays, and tasks on threads.

Threads come from a small pool of Python threads (the kernels release the GIL). Idle ones sleep, they do not spin, so
processes side by side (data workers, ranks, sweeps) do not slow each other; `torch.set_num_threads` rules them too.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """A forked child has no threads: it makes its own pool at its first call."""
    global _pool, _pool_size, _pool_lock
    _pool, _pool_size, _pool_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_tasks(kernel: Callable[..., None], tasks: int, *arguments: Any) -> None:
    """Run tasks [0, tasks) of a kernel, in even shares, on as many threads as torch itself uses."""
    global _pool, _pool_size
    threads = min(torch.get_num_threads(), tasks)
    bounds = [tasks * i // threads for i in range(threads + 1)] if threads else []
    others = []
    if threads > 1:
        with _pool_lock:
            if _pool is None or _pool_size < threads - 1:
                _pool, _pool_size = ThreadPoolExecutor(threads - 1, thread_name_prefix="scan"), threads - 1
            others = [_pool.submit(kernel, bounds[i], bounds[i + 1], *arguments) for i in range(1, threads)]
    if threads:
        kernel(bounds[0], bounds[1], *arguments)
    for other in others:
        other.result()


def as_array(x: Tensor, width: int) -> Any:
    """x as a float32 array, its last dimension contiguous and `width` long (zeros beyond its own); copied if needed."""
    x = x.detach().to(torch.float32)
    if x.shape[-1] != width:
        x = torch.nn.functional.pad(x, (0, width - x.shape[-1]))
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()
