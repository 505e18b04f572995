"""The CPU kernels among threads and processes: the same bits everywhere, and nothing that piles up."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conv import make_inputs as make_convolution
from test_conv import run as run_convolution
from test_scan import assert_bitwise_equal, make_inputs, run
from torch import Tensor

from ssamba.ops import bidirectional_conv_silu, bidirectional_scan, kernels

MIB = 2**20
ON_LINUX = sys.platform == "linux"
on_openmp = pytest.mark.skipif(kernels.worker_team is None, reason="torch brings no libgomp here")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def both(scans: dict[str, Tensor], convolutions: tuple[Tensor, ...], **how: Any) -> dict[str, Tensor]:
    """The values and gradients of a scan and a convolution."""
    names = ("convolved", "dx", "dweight", "dbias")
    found = run_convolution(convolutions, backend="cpu", **how)
    return run(scans, backend="cpu", **how) | dict(zip(names, found, strict=True))


@pytest.mark.parametrize(
    ("how", "bidirectional"),
    [
        ({"direction": "forward"}, False),
        ({"direction": "reverse"}, False),
        ({"swap_directions": False}, True),
        ({"swap_directions": True}, True),
    ],
    ids=["forward", "reverse", "bidirectional", "swap_directions"],
)
@pytest.mark.parametrize("shape", [(2, 50, 70, 5), (3, 33, 200, 16), (1, 20, 40, 3)])
@pytest.mark.parametrize("team", [pytest.param(True, marks=on_openmp), False], ids=["OpenMP", "Python threads"])
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_again(
    team: bool,
    shape: tuple[int, int, int, int],
    how: dict[str, Any],
    bidirectional: bool,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not team:
        monkeypatch.setattr(kernels, "worker_team", None)
    scans = make_inputs(*shape, bidirectional=bidirectional)
    convolutions = make_convolution(*shape[:3], 4, bidirectional)
    torch.set_num_threads(1)
    alone = both(scans, convolutions, **how)
    assert_bitwise_equal(both(scans, convolutions, **how), alone)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        for _ in range(2):
            assert_bitwise_equal(both(scans, convolutions, **how), alone)


def test_calls_from_several_threads_at_once_give_what_each_gives_alone(threads: None) -> None:
    torch.set_num_threads(2)
    scans = [make_inputs(2, 33, 70, 4, seed, bidirectional=True) for seed in range(4)]
    convolutions = make_convolution(2, 33, 70, 4, True)
    wanted = [both(inputs, convolutions) for inputs in scans]
    found: dict[int, list[dict[str, Tensor]]] = {}

    def work(number: int) -> None:
        found[number] = [both(scans[number], convolutions) for _ in range(10)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for number, results in found.items():
        for result in results:
            assert_bitwise_equal(result, wanted[number])
    assert len(found) == 4


def in_child(method: str, work: Callable[..., Any], *arguments: Any, seconds: float = 120) -> Any:
    """What `work(*arguments)` returns in a child process."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(sender, work, arguments))
    child.start()
    sender.close()
    try:
        assert receiver.poll(seconds), "the child hangs"
        return receiver.recv()
    finally:
        receiver.close()
        child.kill()
        child.join()
        child.close()


def send(connection: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(work(*arguments))
    connection.close()


def resources() -> dict[str, int]:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "bytes": resident,
        "python threads": threading.active_count(),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


def growth(batch: int) -> dict[str, int]:
    """By how much what this process holds grows in 10,000 calls of both operators, forward and backward."""
    torch.set_num_threads(2)
    scans = [tensor.requires_grad_() for tensor in make_inputs(batch, 3, 5, 2, bidirectional=True).values()]
    convolutions = [tensor.requires_grad_() for tensor in make_convolution(batch, 3, 5, 2, True)]
    dout = torch.ones(batch, 3, 5)

    def call(rounds: int) -> None:
        for _ in range(rounds):
            u = bidirectional_conv_silu(*convolutions, backend="cpu")
            y = bidirectional_scan(u, *scans[1:], backend="cpu")
            torch.autograd.grad(y, [*convolutions, *scans[1:]], dout)

    call(500)
    before = resources()
    call(2500)
    after = resources()
    return {name: after[name] - before[name] for name in before}


def assert_nothing_piles_up(grown: dict[str, int]) -> None:
    """A leak of one small tensor a call would be some 4 MiB in 10,000 calls."""
    assert grown.pop("bytes") <= 2 * MIB
    assert grown == {"python threads": 0, "threads": 0, "files": 0}


def compute_and_call_often(
    scans: dict[str, Any], convolutions: list[Any], batch: int
) -> tuple[dict[str, Any], dict[str, int]]:
    torch.set_num_threads(2)
    tensors = {name: torch.from_numpy(array) for name, array in scans.items()}
    results = both(tensors, tuple(map(torch.from_numpy, convolutions)), swap_directions=True)
    return {name: tensor.numpy() for name, tensor in results.items()}, growth(batch) if ON_LINUX else {}


def compute_and_fork(scans: dict[str, Any], convolutions: list[Any]) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """What a process computes, and then a child that it forks."""
    found = [compute_and_call_often(scans, convolutions, 2)]
    if "fork" in multiprocessing.get_all_start_methods():
        found.append(in_child("fork", compute_and_call_often, scans, convolutions, 1))
    return found


def test_children_compute_what_their_parent_does_and_ten_thousand_calls_leave_nothing_behind(threads: None) -> None:
    # The one that forks is spawned: what torch was asked for by other tests may keep autograd from a forked child. The
    # inputs are made here: a forked child may hang in torch's own operators that use OpenMP, exp for one.
    scans, convolutions = make_inputs(2, 33, 70, 4, bidirectional=True), make_convolution(2, 19, 130, 4, True)
    torch.set_num_threads(2)
    here = both(scans, convolutions, swap_directions=True)
    arrays = {name: tensor.numpy() for name, tensor in scans.items()}, [tensor.numpy() for tensor in convolutions]
    for there, grown in in_child("spawn", compute_and_fork, *arrays, seconds=300):
        assert_bitwise_equal({name: torch.from_numpy(array) for name, array in there.items()}, here)
        if ON_LINUX:
            assert_nothing_piles_up(grown)
    assert_bitwise_equal(both(scans, convolutions, swap_directions=True), here)


only_linux = pytest.mark.skipif(not ON_LINUX, reason="/proc is Linux's alone")


@only_linux
def test_a_changing_number_of_threads_leaves_no_threads_behind(threads: None) -> None:
    scans, convolutions = make_inputs(4, 3, 70, 2, bidirectional=True), make_convolution(4, 3, 70, 2, True)
    for count in (4, 1, 2, 3, 4):
        torch.set_num_threads(count)
        both(scans, convolutions)
    before = resources()
    for _ in range(20):
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            both(scans, convolutions)
    after = resources()
    assert after["python threads"] <= before["python threads"] and after["files"] <= before["files"]
