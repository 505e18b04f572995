"""Who does the work of data preparation: this process, others, any executor, a Dask cluster."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba import jobs
from ssamba.data.prepare import writer
from ssamba.data.prepare.recordings import DataSet, Recording
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.writer import write_shards
from ssamba.errors import BadAudio, UserError
from ssamba.jobs import cluster, processes, run_jobs


def square(number: int) -> int:
    return number * number


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor])
def test_each_job_and_its_result(pool: Any) -> None:
    executor = pool and pool(3)
    assert sorted(run_jobs(square, range(1000), executor)) == [(n, n * n) for n in range(1000)]
    assert list(run_jobs(square, [], executor)) == []


def test_processes() -> None:
    with processes(1) as executor:
        assert executor is None
    with processes(2) as executor:
        done = dict(run_jobs(where, range(20), executor))
    assert {number for number, _ in done.values()} == set(range(20))
    assert os.getpid() not in {process for _, process in done.values()}


def test_a_bounded_number_is_handed_over() -> None:
    """However many jobs there are, and however long the first takes."""
    handed: list[int] = []
    release = threading.Event()

    def endless() -> Iterator[int]:
        number = 0
        while True:
            handed.append(number)
            yield number
            number += 1

    def work(number: int) -> int:
        assert number or release.wait(60)
        return number

    with ThreadPoolExecutor(2) as executor:
        results = run_jobs(work, endless(), executor)
        for taken in range(1, 600):
            assert next(results)[0] != 0
            assert len(handed) <= jobs.IN_FLIGHT + taken
        release.set()
        results.close()
    assert len(handed) <= jobs.IN_FLIGHT + 600


def test_closing_waits_for_what_runs_and_begins_nothing_else() -> None:
    started, ended = [], []
    running = threading.Event()

    def work(number: int) -> None:
        started.append(number)
        if number:
            running.set()
            threading.Event().wait(0.2)
        ended.append(number)

    with ThreadPoolExecutor(1) as executor:
        results = run_jobs(work, range(100), executor)
        assert next(results) == (0, None)
        assert running.wait(60)
        results.close()
        assert started == ended and len(started) < 5


def test_what_a_job_raises_comes_out() -> None:
    def fail(number: int) -> None:
        raise UserError(f"number {number}")

    with ThreadPoolExecutor(2) as executor, pytest.raises(UserError, match="number 3"):
        list(run_jobs(fail, [3], executor))


def test_an_executor_that_cancels() -> None:
    class Leaving(Executor):
        def submit(self, *_: Any, **__: Any) -> Any:
            future: Future[None] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(UserError, match="the work was cancelled, as happens when a cluster is shut down"):
        list(run_jobs(square, [1], Leaving()))


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{number}.wav" for number in range(8)]
    for path in paths:
        soundfile.write(path, rng.normal(0, 0.1, 3200), 16000)
    return [Recording(path.stem, path) for path in paths]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.parametrize(
    "pool", [lambda: ThreadPoolExecutor(3), lambda: ProcessPoolExecutor(2, get_context("forkserver"))]
)
def test_any_executor_makes_the_same(
    recordings: list[Recording], tmp_path: Path, pool: Callable[[], Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards({"train": recordings}, tmp_path / "out", "toy", samples_per_shard=2)
    monkeypatch.chdir(tmp_path)
    relative = [Recording(one.key, one.path.relative_to(tmp_path)) for one in recordings]
    with pool() as executor:
        write_shards({"train": relative}, tmp_path / "other", "toy", samples_per_shard=2, executor=executor)
    assert content(tmp_path / "out") == content(tmp_path / "other")


def test_a_worker_that_does_not_see_the_recordings(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(*_: object) -> None:
        raise BadAudio(writer.MISSING)

    monkeypatch.setattr(writer, "read_recording", blind)
    with ThreadPoolExecutor(1) as executor, pytest.raises(UserError) as raised:
        write_shards({"train": recordings}, tmp_path / "out", "toy", executor=executor, max_bad_fraction=1)
    assert str(raised.value).startswith(
        f"a worker on {socket.gethostname()} and this process do not see the same files"
    )
    recordings[0].path.unlink()
    with pytest.raises(UserError, match="do not see the same files"):
        write_shards({"train": recordings}, tmp_path / "out", "toy", max_bad_fraction=1)


@pytest.mark.parametrize("whose", ["the worker's", "this process's"])
def test_a_worker_that_writes_elsewhere(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    finish = writer.finish_shard

    def elsewhere(job: Any) -> Any:
        if whose == "the worker's":
            job.place.partial.rename(tmp_path / "hidden")
        written = finish(job)
        (job.place.partial / "whole" / "train" / written.info.name).unlink()
        return written

    monkeypatch.setattr(writer, "finish_shard", elsewhere)
    message = "does not see .*whole/train; expected OUT" if whose == "the worker's" else "do not see the same files"
    with pytest.raises(UserError, match=message):
        write_shards({"train": recordings}, tmp_path / "out", "toy")


class _Died(Exception):
    pass


@pytest.fixture
def dask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module in distributed's place, and its address: a cluster whose work threads do."""
    packages = {"ssamba": "0.1", "soundfile": "0.13", "soxr": "1.0"}
    fake: Any = ModuleType("distributed")
    fake.KilledWorker = _Died
    fake.workers = {"tcp://w:1": {"packages": dict(packages)}}
    fake.asked = []

    class Client:
        def __init__(self, address: str, timeout: float, set_as_default: bool) -> None:
            fake.asked.append(address)
            assert 0 < timeout <= 60 and not set_as_default
            self.pool = ThreadPoolExecutor(2)

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            self.pool.shutdown()

        def get_versions(self, packages: list[str]) -> dict[str, Any]:
            return {"client": {"packages": versions}, "scheduler": {"packages": versions}, "workers": fake.workers}

        def get_executor(self, pure: bool) -> Executor:
            assert not pure
            return self.pool

    versions = packages
    fake.Client = Client

    def host_port(address: str) -> tuple[str, int]:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if not host:
            raise ValueError(f"missing port number in address {address!r}")
        return host, int(port)

    fake.comm = SimpleNamespace(get_address_host_port=host_port)
    monkeypatch.setitem(sys.modules, "distributed", fake)
    with socket.create_server(("127.0.0.1", 0)) as server:
        fake.address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        yield fake


def parser() -> Any:
    import argparse

    return argparse.ArgumentParser()


def test_a_script_with_a_cluster(
    recordings: list[Recording], tmp_path: Path, dask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = DataSet("toy", {"train": recordings})
    call = [str(tmp_path / "in"), str(tmp_path / "out"), "--samples-per-shard=2"]
    assert run_script(parser(), lambda _: found, [*call, f"--cluster={dask.address}"]) == 0
    assert dask.asked == [dask.address]
    write_shards({"train": recordings}, tmp_path / "other", "toy", samples_per_shard=2)
    assert content(tmp_path / "out") == content(tmp_path / "other")

    with pytest.raises(SystemExit):
        cores = str(jobs.usable_cores())
        run_script(parser(), lambda _: found, [*call, f"--cluster={dask.address}", "--workers", cores])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1"])
def test_no_scheduler_at_the_address(
    recordings: list[Recording], tmp_path: Path, dask: Any, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(tmp_path / "in"), str(tmp_path / "out"), f"--cluster={address}"]
    assert run_script(parser(), lambda _: DataSet("toy", {"train": recordings}), call) == 2
    said = capsys.readouterr().err
    assert f"error: --cluster is {address}, where no Dask scheduler answers (" in said and "tcp://host:8786" in said
    assert dask.asked == [] and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_dask_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UserError, match=r"needs Dask, which is not installed: pip install 'ssamba\[dask\]'"),
        cluster("x:1"),
    ):
        pass


@pytest.mark.parametrize(("version", "told"), [(None, "none"), ("0.9", "0.9")])
def test_workers_with_other_packages(dask: Any, version: str | None, told: str) -> None:
    dask.workers["tcp://w:2"] = {"packages": {"ssamba": "0.1", "soundfile": version, "soxr": "1.0"}}
    message = rf"has another soundfile than this process \({told} on tcp://w:2, 0.13 here\)"
    with pytest.raises(UserError, match=message), cluster(dask.address):
        pass


def test_a_cluster_without_workers_and_one_whose_workers_die(dask: Any, caplog: pytest.LogCaptureFixture) -> None:
    dask.workers.clear()
    with pytest.raises(UserError, match=r"workers of the cluster died.*\(of hunger\)"), cluster(dask.address):
        raise _Died("of hunger")
    assert "has no worker yet; the work begins when one comes" in caplog.text


def test_a_real_cluster(recordings: list[Recording], tmp_path: Path) -> None:
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("Dask is not installed: pip install 'ssamba[dask]'")
    import distributed

    write_shards({"train": recordings}, tmp_path / "out", "toy", samples_per_shard=2)
    quiet = {"dashboard_address": None, "n_workers": 2, "threads_per_worker": 1}
    with distributed.LocalCluster(**quiet) as local, cluster(local.scheduler_address) as executor:
        write_shards({"train": recordings}, tmp_path / "other", "toy", samples_per_shard=2, executor=executor)
        assert content(tmp_path / "out") == content(tmp_path / "other")
        recordings[0].path.write_text("no audio")
        with pytest.raises(UserError, match="1 of 8 recordings are unusable"):
            write_shards({"train": recordings}, tmp_path / "bad", "toy", samples_per_shard=2, executor=executor)


def blocked(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_are_begun_with_interrupts_blocked() -> None:
    """So that none is ended in its first moments; here they are as they were. In a process that has no server yet."""
    code = (
        "import signal, sys; sys.path[:0] = sys.argv[1:]\n"
        "from ssamba.jobs import processes, run_jobs; from test_jobs import blocked\n"
        "if __name__ == '__main__':\n"
        "    with processes(2) as pool: print(all(answer for _, answer in run_jobs(blocked, range(8), pool)))\n"
        "    print(blocked(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), *sys.path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\nFalse\n"
