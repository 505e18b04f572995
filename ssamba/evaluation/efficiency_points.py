"""An encoder's time and peak memory at so many tokens, each point measured in a process of its own.

Only so is the peak that of one point, and only so does a point that takes too much end without taking anything else
with it. Clips have 128 mel bins in patches of 16 x 16: 8 rows of tokens.
"""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssamba.evaluation.efficiency import calls_needed, peak_memory, seconds
from ssamba.files import Count
from ssamba.models.encoder import SIZES, AudioEncoder

MEL_BINS, SIDE = 128, 16
ROWS = MEL_BINS // SIDE
PLAIN = "ssast-plain"
"""SSAST with the original's attention, whose matrices of tokens x tokens are in memory."""
KINDS = ("ssamba", "aum", "ssast", PLAIN, "conformer", "bilstm", "ssd")
PASSES = ("forward", "forward+backward")

Status = Literal["done", "out of memory", "out of time", "failed"]
Positive = Annotated[int, Meta(ge=1, le=2**31)]
Amount = Annotated[float, Meta(ge=0)]

_SPARE = 2 * 2**30  # bytes for a process with an encoder in it, and for the rest of the machine
_ROOM = 1.2  # of the last call's time is what the next one may take
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create a memory")


class Point(NamedTuple):
    """One of `KINDS`, a size, one of `PASSES`, clips of a batch, and patch tokens of a clip: a multiple of `ROWS`."""

    encoder: str
    size: str
    passes: str
    batch: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.encoder} {self.size}, {self.passes}, batch {self.batch}, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Limits:
    """What a point may take: seconds in all, and on the CPU bytes beyond weights and clips; None: `spare_memory`."""

    most_seconds: float
    most_bytes: int | None = None


@dataclass(frozen=True)
class Measured:
    """A `Point` and its measurement, as results.json has it.

    seconds: of a call, in each round; of a point without the time for a second call that of its first. bytes: beyond
    weights and clips, None where the system does not report it. most_seconds, most_bytes: what it might take; no bytes
    where nothing limits them, or they are not known yet. because: why it is not done.
    """

    encoder: str
    size: str
    passes: str
    batch: Positive
    tokens: Positive
    status: Status
    most_seconds: Amount
    most_bytes: Count | None = None
    seconds: list[Amount] = field(default_factory=list)
    bytes: Count | None = None
    because: str = ""

    @property
    def point(self) -> Point:
        return Point(self.encoder, self.size, self.passes, self.batch, self.tokens)

    def stands(self, limits: Limits) -> bool:
        """Whether measuring again, within these limits, could not have another outcome."""
        if self.status == "out of time":
            return self.most_seconds >= limits.most_seconds
        if self.status == "out of memory":
            return limits.most_bytes is None or (self.most_bytes or 0) >= limits.most_bytes
        return self.status == "done"


def make_encoder(point: Point, device: str) -> AudioEncoder:
    """The encoder of a point, for clips of its length, with fresh weights."""
    family, frames = point.encoder.removesuffix("-plain"), point.tokens // ROWS * SIDE
    torch.manual_seed(0)
    return AudioEncoder(family, SIZES[family][point.size], MEL_BINS, frames, SIDE, SIDE, SIDE, SIDE).to(device)


def forward(encoder: AudioEncoder, clips: Tensor) -> None:
    with torch.inference_mode():
        encoder(clips)


def forward_backward(encoder: AudioEncoder, clips: Tensor) -> None:
    """Of the mean square of the output; the gradients are freed."""
    encoder(clips).tokens.square().mean().backward()
    encoder.zero_grad()


def attention_of(kind: str) -> AbstractContextManager[None]:
    """Within it attention is what `kind` has: torch's choice, or the plain one."""
    return sdpa_kernel(SDPBackend.MATH) if kind == PLAIN else nullcontext()


def measure_here(
    point: Point, device: str, rounds: int, deadline: float, most_bytes: int | None
) -> tuple[list[float], int | None]:
    """`Measured.seconds` and `Measured.bytes`, in this process.

    Args:
        rounds: timed calls, after one whose memory is measured; fewer if they would not end by `deadline`.
        deadline: on time.time's clock.
        most_bytes: beyond weights and clips; None: no limit.

    Raises:
        MemoryError, RuntimeError: more is needed.
    """
    encoder = make_encoder(point, device)
    clips = torch.randn(point.batch, point.tokens // ROWS * SIDE, MEL_BINS, generator=torch.Generator().manual_seed(0))
    clips, step = clips.to(device), forward if point.passes == PASSES[0] else forward_backward
    first: list[float] = []

    def call() -> None:
        step(encoder, clips)

    with attention_of(point.encoder):
        step(encoder, clips[:, :SIDE])  # kernels are compiled, and libraries take what they keep
        with memory_limited(most_bytes):
            peak = peak_memory(lambda: first.append(seconds(call, 1, device)), device)
            calls = calls_needed(first[0])
            times: list[float] = []
            while len(times) < rounds and time.time() + _ROOM * calls * (times or first)[-1] < deadline:
                times.append(seconds(call, calls, device))
    return times or first, peak


@contextmanager
def memory_limited(most_bytes: int | None) -> Iterator[None]:
    """Within it the system refuses this process so much more memory than it has now, so that none is swapped out. Linux
    alone does so."""
    if most_bytes is None or sys.platform != "linux":
        yield
        return
    lines = Path("/proc/self/status").read_text().splitlines()
    taken = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def measure_apart(point: Point, device: str, threads: int, rounds: int, limits: Limits) -> Measured:
    """A point, by a new process with so many threads, which is ended when its time is over."""
    most_bytes = limits.most_bytes if device == "cpu" else None
    if device == "cpu" and most_bytes is None:
        most_bytes = spare_memory()
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    deadline = time.time() + limits.most_seconds
    arguments = (theirs, threads, point, device, rounds, deadline, most_bytes)
    process = context.Process(target=_measure, args=arguments, daemon=True)
    process.start()
    theirs.close()
    status: Status
    times, peak, because = list[float](), None, ""
    try:
        if not ours.poll(max(0.0, deadline - time.time())):
            status, because = "out of time", f"not done after {limits.most_seconds:g} s"
        else:
            status, times, peak, because = ours.recv()
    except EOFError:
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        status, because = "out of memory" if killed else "failed", f"its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
        ours.close()
    return Measured(*point, status, limits.most_seconds, most_bytes, times, peak, because)


def _measure(connection: Connection, threads: int, *arguments: Any) -> None:
    """What the new process does: send status, seconds, bytes and because."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's, which ends this process
    torch.set_num_threads(threads)
    try:
        times, peak = measure_here(*arguments)
    except Exception as error:  # reported by the parent, whatever it is
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        connection.send(("out of memory" if _is_out_of_memory(error) else "failed", [], None, text))
    else:
        connection.send(("done", times, peak, ""))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _NO_MEMORY)


def spare_memory(system: Path = Path("/")) -> int | None:
    """Bytes that a point on the CPU may take, so that the machine swaps nothing: what is available, of the machine and
    of the control group that this process is in, less two gigabytes. None where the system does not report it.

    Args:
        system: the folder of proc and sys.
    """
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
        left = [1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))]
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except (OSError, StopIteration):
        return None
    top = system / "sys/fs/cgroup"
    own = top / next((line[len("0::/") :] for line in groups if line.startswith("0::/")), "")
    for group in (own, *own.parents):
        if not group.is_relative_to(top):
            break
        try:
            most = (group / "memory.max").read_text().strip()
            current = int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            left.append(
                int(most) - current + int(statistics.get("inactive_file", 0))
            )  # that is what files left in memory
    return max(0, min(left) - _SPARE)
