"""Jobs done here, by processes of this machine or by a cluster's workers. Imports no torch."""

import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from typing import TypeVar

from ssamba.errors import UserError

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

CONNECT_SECONDS = 10.0  # that a cluster's scheduler may take to answer
# An executor does not tell how many workers it has, and a cluster's may grow; millions of jobs would fill its memory.
IN_FLIGHT = 256
_LOOK_SECONDS = 0.5  # from one look for an interrupt to the next
_SAME = ["ssamba", "soundfile", "soxr"]  # packages whose versions decide what is made


def usable_cores() -> int:
    """The cores that this process may use: a batch system lends some of a node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], executor: Executor | None
) -> Generator[tuple[Job, Result], None, None]:
    """Each job and its result, in the order in which they are done; a bounded number is handed over at a time.

    When the generator is closed, or a job fails, no further job begins, and those that run are waited for where they
    cannot be cancelled.

    Args:
        function: like the jobs and the results, to be pickled if the executor needs that.
        executor: anything with the interface of concurrent.futures; None: the work is done here.

    Raises:
        UserError: the executor lost its workers. What a job raises comes out as it is.
    """
    if executor is None:
        yield from ((job, function(job)) for job in jobs)
        return
    left = iter(jobs)
    running: dict[Future[Result], Job] = {}
    try:
        with _interrupts_held_back() as raise_interrupt:
            while True:
                for job in itertools.islice(left, IN_FLIGHT - len(running)):
                    running[executor.submit(function, job)] = job
                if not running:
                    return
                for future in wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
                raise_interrupt()
    except BrokenExecutor as error:
        raise UserError("a worker was killed, as happens for want of memory: give fewer --workers") from error
    except CancelledError as error:
        raise UserError("the work was cancelled, as happens when a cluster is shut down") from error
    finally:
        wait([future for future in running if not future.cancel()])


@contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C comes when the function that this gives is called: in the middle of an executor's own work it may get lost
    or leave a worker that nobody ends."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where it never comes
        yield lambda: None
        return

    def raise_interrupt() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def blocked(signum: signal.Signals) -> Iterator[None]:
    """Block a signal in this thread, so that what is started meanwhile inherits that it is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """So many processes of this machine; None for one, which is this one."""
    if workers == 1:
        yield None
        return
    # A server that has imported everything once and runs no threads is safe and quick to fork from.
    context = get_context("forkserver")
    context.set_forkserver_preload(["ssamba.recordings"])
    # It and its workers inherit that interrupts are blocked: they are the parent's to handle, and one that ends a
    # worker in its first moments can leave another that nobody ends. The tracker would unblock them when it starts.
    resource_tracker.ensure_running()
    with blocked(signal.SIGINT):
        forkserver.ensure_running()
    with ProcessPoolExecutor(workers, context, initializer=_obey_parent) as pool:
        yield pool


def _obey_parent() -> None:
    # Also where the server was there before; a parent that is killed cannot tell its workers to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


@contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster, by the address of its scheduler, such as tcp://host:8786.

    Raises:
        UserError: Dask is not installed, nothing answers at the address, the cluster has other versions of what
            decides the bytes, or its workers died.
    """
    try:
        import distributed
    except ImportError as error:
        raise UserError("--cluster needs Dask, which is not installed: pip install 'ssamba[dask]'") from error
    try:
        # A client that does not come about is slow to go, and complains.
        socket.create_connection(distributed.comm.get_address_host_port(address), CONNECT_SECONDS).close()
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--cluster is {address}, where no Dask scheduler answers ({error}); expected the address that "
            "`dask scheduler` prints, such as tcp://host:8786"
        ) from error
    with client:
        versions = client.get_versions(packages=_SAME)
        for place, has in {"its scheduler": versions["scheduler"], **versions["workers"]}.items():
            for name in _SAME:
                here, there = versions["client"]["packages"][name], has["packages"][name]
                if here != there:
                    raise UserError(
                        f"the cluster at {address} has another {name} than this process ({there or 'none'} on {place}, "
                        f"{here} here); expected the same everywhere: install it there"
                    )
        if not versions["workers"]:
            log.warning("the cluster at %s has no worker yet; the work begins when one comes", address)
        try:
            yield client.get_executor(pure=False)
        except distributed.KilledWorker as error:
            raise UserError(
                f"workers of the cluster died, as happens for want of memory ({error}); the same call goes on from "
                "what is finished"
            ) from error
