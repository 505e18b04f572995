"""Shards that lie elsewhere: on a server that fails in every way it can, and behind commands that do."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch.utils.data
from forked import Forked

from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards import pieces, remote, stores, transport
from ssamba.data.shards.finding import default_cache, find_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.data.shards.transport import Expected, fetch_file, opened
from ssamba.data.shards.urls import expand_remote, file_name, renamed
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError

BIG = 10**9


def write(folder: Path, seeds: range) -> Path:
    """A split of 6 shards of some 35 kB, each of two recordings of noise."""
    recordings = []
    for number, seed in enumerate(seeds):
        path = folder / "in" / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 8000), 16000)
        recordings.append(Recording(f"key{number:02}", path, {"parity": ["even", "odd"][number % 2]}))
    write_shards({"train": recordings}, folder / "noise", "noise", samples_per_shard=2)
    shutil.rmtree(folder / "in")
    return folder / "noise" / "train"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("made"), range(12))


class Server(ThreadingHTTPServer):
    """Serves a folder. faults: file name -> what befalls its next requests, one after the other; the last stays if it
    is "always"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.seen: list[tuple[str, str]] = []
        self.stalled, self.released = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/data/"

    def counts(self, ending: str = ".tar") -> Counter[str]:
        return Counter(name for name, _ in self.seen if name.endswith(ending))

    def fault(self, name: str) -> str:
        faults = self.faults.get(name, [])
        if faults[1:] == ["always"]:
            return faults[0]
        return faults.pop(0) if faults else ""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, name = self.server, os.path.basename(self.path)
        wanted = self.headers.get("Range", "")
        server.seen.append((name, wanted))
        fault = server.fault(name)
        path = server.folder / name
        if fault.isdigit() or not path.is_file():
            self.send_error(int(fault or 404))
            return
        content = path.read_bytes()
        whole, start = len(content), 0
        if fault == "corrupt":
            content = content[: whole // 2] + bytes([content[whole // 2] ^ 1]) + content[whole // 2 + 1 :]
        if fault == "long":
            content += bytes(1)
        if wanted and fault != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "slow":
            time.sleep(0.05)
        for begin in range(0, len(content), 1000) if fault == "trickle" else ():
            if begin:
                time.sleep(0.01)
            with suppress(OSError):
                self.wfile.write(content[begin : begin + 1000])
        if fault == "trickle":
            return
        if fault in ("cut", "stall", "silent"):
            sent = 0 if fault == "silent" else len(content) // 2
            self.wfile.write(content[:sent])
            if fault == "cut":
                return
            self.wfile.flush()
            server.stalled.set()
            server.released.wait(60)
            content = content[sent:]
        with suppress(OSError):  # who asked has gone
            self.wfile.write(content)


@pytest.fixture
def server(made: Path) -> Iterator[Server]:
    with Server(made) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(pieces, "CHUNK", 4096)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder where nothing half-fetched is left at the end."""
    yield tmp_path / "cache"
    assert not list(tmp_path.glob("cache/*.part"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.glob("*.tar"))}


def until(done: Callable[[], object]) -> None:
    for _ in range(2000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to pass")


# How sources are named


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://host/a/train/", ["https://host/a/train/index.json"]),
        ("https://host/train/index.json?key=a.b", ["https://host/train/index.json?key=a.b"]),
        ("http://host/x.tar.d/{00..01}.tar", ["http://host/x.tar.d/00.tar", "http://host/x.tar.d/01.tar"]),
        ("pipe:aws s3 cp s3://b/{a,b}/0.tar -", ["pipe:aws s3 cp s3://b/a/0.tar -", "pipe:aws s3 cp s3://b/b/0.tar -"]),
        ("pipe:ssh host 'cat /d/index.json' | cat", ["pipe:ssh host 'cat /d/index.json' | cat"]),
        ("pipe:cat my\\ d/0.tar | awk '{print}'", ["pipe:cat my\\ d/0.tar | awk '{print}'"]),
    ],
)
def test_sources(source: str, expected: list[str]) -> None:
    assert expand_remote(source) == expected
    for url in expected:
        assert renamed(renamed(url, "samples.npy"), "x") != ""
        assert file_name(renamed(url, "7.tar")) == "7.tar"
        assert renamed(renamed(url, "7.tar"), file_name(url)) == url


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("htp://host/0.tar", "'htp://host/0.tar' is not read as it is; expected .*, or pipe: and a command"),
        ("https://host/train", "should name one file, a shard .* or the index .*; it names none"),
        ("pipe:cat a/0.tar b/1.tar", "should name one file, .*; it names 2"),
        ("https://host/{0..9.tar", "unbalanced braces"),
    ],
)
def test_sources_that_are_none(source: str, message: str, cache: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_shards(source, cache)
    assert not cache.exists()


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == Path("/somewhere/.cache/ssamba/shards")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache() == Path("/elsewhere/ssamba/shards")


# What is found


def test_the_same_data_here_and_elsewhere(made: Path, server: Server, cache: Path) -> None:
    here = find_shards(str(made))
    for sources in (
        [server.url],
        [f"{server.url}index.json"],
        [f"{server.url}{{000000..000005}}.tar"],
        [f"pipe:cat {made}/index.json"],
        [f"pipe:cat {made}/{{000000..000003}}.tar", f"{server.url}000004.tar", f"{server.url}000005.tar"],
        [f"{made}/00000[0-2].tar", f"{server.url}{{000003..000005}}.tar"],
    ):
        found = find_shards(sources, cache)
        assert (found.fingerprint, found.labels) == (here.fingerprint, here.labels)
        assert (found.samples, found.seconds, found.sampling_rate) == (here.samples, here.seconds, here.sampling_rate)
        assert np.array_equal(found.table, here.table)
        remote = [shard for shard in found.shards if shard.url]
        assert {shard.path.parent for shard in remote} <= {cache} and not any(shard.path.exists() for shard in remote)
    # Found, not fetched: and the table once.
    assert server.counts() == {}
    assert server.counts("index.json") == {"index.json": 5}
    assert server.counts("samples.npy") == {"samples.npy": 1}

    held = ShardCache(BIG)
    assert [digest(held.local(shard)) for shard in found.shards] == list(digests(made).values())
    assert [held.local(shard) for shard in here.shards] == [shard.path for shard in here.shards]
    with pytest.raises(UserError, match=r"000003.tar is given twice, again by 'pipe:cat"):
        find_shards([server.url, f"pipe:cat {made}/000003.tar"], cache)


def test_a_new_index(tmp_path: Path, server: Server, cache: Path) -> None:
    server.folder = write(tmp_path / "one", range(12))
    before = find_shards(server.url, cache)
    held = ShardCache(BIG)
    for shard in before.shards:
        held.local(shard)
    server.folder = write(tmp_path / "two", range(2, 14))  # other recordings in all shards but the names
    server.seen.clear()
    after = find_shards(server.url, cache)
    assert after.fingerprint == find_shards(str(server.folder)).fingerprint != before.fingerprint
    assert [digest(held.local(shard)) for shard in after.shards] == list(digests(server.folder).values())
    assert server.counts("samples.npy") == {"samples.npy": 1} and server.counts().total() == 6
    server.folder = tmp_path / "one" / "noise" / "train"
    server.seen.clear()
    for shard in find_shards(server.url, cache).shards:  # the first are still there
        held.local(shard)
    assert server.seen == [("index.json", "")]


def test_an_index_that_is_none(tmp_path: Path, server: Server, cache: Path) -> None:
    server.faults["index.json"] = ["404", "always"]
    with pytest.raises(
        UserError, match=r"index.json could not .* in 2 attempts; the last: HTTP 404 .*expected the index"
    ):
        find_shards(server.url, cache)
    server.faults["index.json"] = ["500", "cut"]
    assert find_shards(server.url, cache).samples == 12
    with pytest.raises(UserError, match=r"index.json does not list 000009.tar"):
        find_shards(f"{server.url}000009.tar", cache)
    with pytest.raises(UserError, match=r"attempts; the last: exit status 1: cat: .*index.json: No such file"):
        find_shards(f"pipe:cat {tmp_path}/index.json", cache)
    with pytest.raises(UserError, match=r"in 2 attempts; the last: exit status 127: .*nocat"):
        find_shards(f"pipe:nocat {tmp_path}/index.json", cache)
    with pytest.raises(UserError, match="it is no url"):
        find_shards("http://host:port/index.json", cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "$(touch hacked).tar"}, r"lists '\$\(touch hacked\).tar'; expected a name of letters"),
        ({"name": "000000 -o.tar"}, "expected a name of letters"),
        ({"name": "-h.tar"}, "expected a name of letters"),
        ({"sha256": "../../000000"}, r"index.json cannot be used: Expected `str` matching regex '\^\[0-9a-f\]"),
        ({"samples": 0}, "000000.tar is empty"),
    ],
)
def test_an_index_that_means_ill(
    made: Path, tmp_path: Path, cache: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0] |= change
    index["samples"] = sum(shard["samples"] for shard in index["shards"])
    (folder / "index.json").write_text(json.dumps(index))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_shards(f"pipe:cat {folder}/index.json", cache)
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "cache"}


def test_verify_reads_shards_from_elsewhere(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    server.faults["000002.tar"] = ["404", "always"]
    problems = verify_shards(found, progress=False, local=ShardCache(BIG).local)
    assert len(problems) == 1
    assert problems[0].startswith(f"{server.url}000002.tar: it cannot be read: {server.url}000002.tar could not be fet")
    del server.faults["000002.tar"]
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []


# How a file is fetched


def one(made: Path, source: str, cache: Path, cancelled: threading.Event | None = None) -> Path:
    """Fetch the first shard from its url or command; where it is then."""
    path, shard = cache / "one.tar", made / "000000.tar"
    assert fetch_file(source, path, Expected(shard.stat().st_size, sha256=digest(shard)), cancelled=cancelled)
    assert path.read_bytes() == (made / "000000.tar").read_bytes()
    return path


@pytest.mark.parametrize(
    ("faults", "resumed"),
    [
        ([], []),
        (["500", "503"], [False, False]),
        (["429"], [False]),
        (["cut"], [True]),
        (["cut", "500", "cut", "cut"], [True, True, True, True]),
        (["cut", "no ranges"], [True]),
        (["no ranges"], []),
        (["stall"], [True]),
        (["corrupt"], [False]),
        (["cut", "corrupt"], [True, False]),
        (["long"], [False]),
        (["404"], [False]),
    ],
)
def test_what_a_server_does_and_stops_doing(
    made: Path, server: Server, cache: Path, faults: list[str], resumed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "STALL_SECONDS", 0.3)
    server.faults["000000.tar"] = list(faults)
    one(made, f"{server.url}000000.tar", cache)
    assert [bool(wanted) for _, wanted in server.seen] == [False, *resumed]
    assert sorted(path.name for path in cache.iterdir()) == ["one.tar"]


@pytest.mark.parametrize(
    ("fault", "attempts", "cause"),
    [
        ("500", 5, "HTTP 500 Internal Server Error"),
        ("404", 2, "HTTP 404 Not Found"),
        ("403", 2, "HTTP 403 Forbidden"),
        ("corrupt", 2, "its sha256 is [0-9a-f]{64}; the index expects [0-9a-f]{64}"),
        ("long", 2, "it has [0-9]+ bytes; expected [0-9]+$"),
    ],
)
def test_what_a_server_does_for_good(
    made: Path,
    server: Server,
    cache: Path,
    fault: str,
    attempts: int,
    cause: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    never = threading.Event()
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(never, "wait", waits.append)
    server.faults["000000.tar"] = [fault, "always"]
    url = f"{server.url}000000.tar"
    with pytest.raises(UserError, match=rf"{url} could not be fetched in {attempts} attempts; the last: {cause}"):
        one(made, url, cache, never)
    assert len(server.seen) == attempts
    assert len(waits) == attempts - 1
    assert all(0.5 * 2**number <= wait <= 1.5 * 2**number for number, wait in enumerate(waits))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (attempts - 1)
    assert caplog.records[0].getMessage().startswith(f"{url}: attempt 1 of 5: ")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("faults", [[], ["cut", "500", "cut"], ["cut", "no ranges"], ["no ranges"], ["404", "cut"]])
def test_a_file_that_is_read_from_front_to_back(made: Path, server: Server, faults: list[str]) -> None:
    server.faults["000000.tar"] = list(faults)
    with opened(f"{server.url}000000.tar") as file:
        parts = iter(lambda: file.read(5000), b"")
        assert b"".join(parts) == (made / "000000.tar").read_bytes()
    assert not server.faults["000000.tar"]
    server.faults["000000.tar"] = ["cut", "404", "404"]
    with (
        opened(f"{server.url}000000.tar") as file,
        pytest.raises(UserError, match="000000.tar could not be read in 3 attempts; the last: HTTP 404 Not Found$"),
    ):
        file.read()


def test_no_server(made: Path, server: Server, cache: Path) -> None:
    url = server.url.replace(str(server.server_port), "9")  # where nobody listens
    with pytest.raises(UserError, match=r"in 5 attempts; the last: .*refused"):
        one(made, f"{url}000000.tar", cache)


def script(tmp_path: Path, times: int, before: str) -> Path:
    """A command that does something else the first times."""
    path = tmp_path / "command.sh"
    path.write_text(
        f'echo x >> {tmp_path}/calls\nif [ $(wc -l < {tmp_path}/calls) -le {times} ]; then {before}; fi\ncat "$1"\n'
    )
    return path


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


@pytest.mark.parametrize(
    "before", ["echo gone >&2; exit 1", 'head -c 9999 "$1"; exit 3', 'head -c 9999 "$1"; exit 0', "cat; exit 0"]
)
def test_a_command_that_fails_twice(made: Path, tmp_path: Path, cache: Path, before: str) -> None:
    command = script(tmp_path, 2, before)
    one(made, f"pipe:sh {command} {made}/000000.tar", cache)
    assert calls(tmp_path) == 3


def test_what_is_right_is_right_whatever_its_command_says(made: Path, tmp_path: Path, cache: Path) -> None:
    command = script(tmp_path, 9, 'cat "$1"; exit 1')
    one(made, f"pipe:sh {command} {made}/000000.tar", cache)
    assert calls(tmp_path) == 1


@pytest.mark.parametrize(
    ("command", "attempts", "cause"),
    [
        ("echo the bucket >&2; echo is gone >&2; cat {} | head -c 99; exit 4", 5, "exit status 4: the bucket is gone$"),
        ("head -c 99 {}", 5, r"it ended after 99 of \d+ bytes$"),
        ("nocat {}", 2, "exit status 127: .*nocat"),
        ("cat {} && echo", 2, r"it is larger than the \d+ bytes expected"),
        ("tr a b < {}", 2, "its sha256 is"),
    ],
)
def test_a_command_that_fails_for_good(made: Path, cache: Path, command: str, attempts: int, cause: str) -> None:
    with pytest.raises(UserError, match=rf"could not be fetched in {attempts} attempts; the last: {cause}"):
        one(made, f"pipe:{command.replace('{}', f'{made}/000000.tar')}", cache)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "stalls", ["sleep 1000", 'head -c 9999 "$1"; sleep 1000', 'head -c 99 "$1"; exec >&-; sleep 1000']
)
def test_a_command_that_stalls(
    made: Path, tmp_path: Path, cache: Path, stalls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "STALL_SECONDS", 0.3)
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    command = script(tmp_path, 1, f"exec 9> {tmp_path}/alive; echo x >&9; {stalls}")
    one(made, f"pipe:exec sh {command} {made}/000000.tar", cache)
    assert calls(tmp_path) == 2
    assert os.read(alive, 9) == b"x\n"

    def ended() -> bool:
        """Whether nobody, the command or a child of its, has the other end open any more."""
        try:
            return os.read(alive, 9) == b""
        except BlockingIOError:
            return False

    until(ended)
    os.close(alive)


def test_a_cache_that_is_no_folder(made: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be used .*set data.cache to a folder on a local disk"):
        find_shards(server.url, tmp_path / "file")


# Many at the same time

READER = """
import hashlib
from ssamba.data.shards.finding import find_shards
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
source, folder = sys.argv[1:]
cache = ShardCache(10**9)
held = find_shards(source, folder)
for shard in held.shards:
    print(hashlib.sha256(cache.local(shard).read_bytes()).hexdigest())
"""


def reader(source: str, cache: Path, folder: Path, code: str = READER) -> Forked:
    return Forked([source, str(cache)], folder, code)


def test_processes_that_ask_for_the_same(made: Path, server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults = {name: ["slow"] for name in digests(made)}
    ahead = READER.replace("for shard", "cache.prefetch(held.shards[3:])\nfor shard")
    readers = [reader(server.url, cache, tmp_path / str(number), ahead) for number in range(4)]
    for process in readers:
        assert process.wait(60) == 0 and process.out.read_text().split() == list(digests(made).values())
    assert server.counts() == dict.fromkeys(digests(made), 1)
    assert server.counts(".npy") == {"samples.npy": 1} and server.counts("index.json") == {"index.json": 4}


def test_threads_that_ask_for_the_same(made: Path, server: Server, cache: Path) -> None:
    shard = find_shards(server.url, cache).shards[0]
    server.faults[shard.info.name] = ["stall"]
    paths: list[Path] = []
    held = ShardCache(BIG)
    threads = [threading.Thread(target=lambda: paths.append(held.local(shard))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert server.stalled.wait(30)
    assert not shard.path.exists()
    assert not fetch_file(str(shard.url), shard.path, Expected(shard.info.bytes), wait=False)
    server.released.set()
    for thread in threads:
        thread.join()
    assert paths == [shard.path] * 4 and server.counts() == {"000000.tar": 1}


def test_a_fetcher_that_is_killed(made: Path, server: Server, cache: Path, tmp_path: Path) -> None:
    found = find_shards(server.url, cache)
    server.faults["000000.tar"] = ["stall"]
    code = "from ssamba.data.shards import pieces; pieces.CHUNK = 4096" + READER
    process = reader(server.url, cache, tmp_path / "process", code)
    assert server.stalled.wait(60)
    (part,) = cache.glob("*.part")
    until(lambda: part.stat().st_size)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = part.stat().st_size
    assert digest(ShardCache(BIG).local(found.shards[0])) == digest(made / "000000.tar")
    ranges = [wanted for name, wanted in server.seen if name == "000000.tar"]
    assert left and ranges == ["", f"bytes={left}-"]


def test_a_fetcher_that_fails_leaves_it_to_the_next(made: Path, server: Server, cache: Path) -> None:
    shard = find_shards(server.url, cache).shards[0]
    server.faults[shard.info.name] = ["404", "404"]
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(ShardCache(BIG).local(shard))
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert failed.endswith("HTTP 404 Not Found. A run that stopped goes on with --resume")
    assert outcomes.count(shard.path) == 2 and server.counts() == {"000000.tar": 3}


def test_a_process_that_was_forked_meanwhile_bars_nobody(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    first, second = found.shards[:2]
    server.faults[first.info.name] = ["stall"]
    held = ShardCache(BIG)
    held.prefetch([first])
    assert server.stalled.wait(30)
    waiting = threading.Thread(target=held.local, args=(first,), daemon=True)
    waiting.start()
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def child() -> None:  # which holds the open file of the lock as well
        held.prefetch([second])  # in a thread of its own: that of the parent is not here
        until(second.path.exists)
        theirs.send(str(held.local(second)))
        theirs.recv()

    process = context.Process(target=child)
    process.start()
    assert mine.poll(30) and mine.recv() == str(second.path)
    server.released.set()
    waiting.join(30)
    assert not waiting.is_alive() and process.is_alive()
    mine.send(None)
    process.join(30)
    assert process.exitcode == 0 and server.counts() == {first.info.name: 1, second.info.name: 1}


# Ahead of time, and room for it


def test_prefetch(made: Path, server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(BIG)
    held.prefetch([*found.shards[:3], *find_shards(str(made)).shards])
    until(found.shards[2].path.exists)
    assert [name for name, _ in server.seen][2:] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [digest(held.local(shard)) for shard in found.shards[:3]] == list(digests(made).values())[:3]
    assert server.counts().total() == 3


def test_prefetch_again_takes_the_place_of_what_was_asked_for_before(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    server.faults["000000.tar"] = ["stall"]
    held = ShardCache(BIG)
    held.prefetch(found.shards[:3])
    assert server.stalled.wait(30)
    held.prefetch(found.shards[4:])
    time.sleep(0.1)
    assert server.counts() == {"000000.tar": 1}  # one at a time
    server.released.set()
    until(found.shards[5].path.exists)
    assert [name for name, _ in server.seen][2:] == ["000000.tar", "000004.tar", "000005.tar"]


def test_prefetch_leaves_to_others_what_they_are_fetching(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    part = found.shards[0].path.with_suffix(".tar.part")
    held = ShardCache(BIG)
    with transport.locked(part, wait=False):
        held.prefetch(found.shards[:2])
        until(found.shards[1].path.exists)
        part.unlink()
    assert server.counts() == {"000001.tar": 1}


def test_prefetch_does_not_make_room_of_what_is_asked_for(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(room(found, 4))
    fill(found, held, 4)
    held.prefetch([found.shards[0], found.shards[5]])
    until(found.shards[5].path.exists)
    assert [shard.path.exists() for shard in found.shards] == [True, False, True, True, False, True]


def test_prefetch_fills_half_of_the_cache(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(2 * sum(shard.info.bytes for shard in found.shards[:3]) + 1)
    held.prefetch(found.shards)
    assert held._thread is not None
    held._thread.join()
    assert [shard.path.exists() for shard in found.shards] == [True] * 3 + [False] * 3


def test_prefetch_that_fails_is_told_when_the_shard_is_needed(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = find_shards(server.url, cache).shards[0]
    server.faults["000000.tar"] = ["404", "always"]
    held = ShardCache(BIG)
    held.prefetch([shard])
    until(lambda: "not fetched ahead" in caplog.text)
    with pytest.raises(UserError, match=r"000000.tar could not be fetched in 2 attempts; .*goes on with --resume"):
        held.local(shard)


def test_prefetch_keeps_no_process_from_ending(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults["000003.tar"] = ["stall"]
    ends = "cache.prefetch(held.shards[3:])\nwhile not held.shards[3].path.with_suffix('.tar.part').exists(): pass"
    process = reader(server.url, cache, tmp_path / "process", READER.partition("for shard")[0] + ends)
    assert process.wait(60) == 0
    server.released.set()
    ShardCache(BIG).local(find_shards(server.url, cache).shards[3])  # and what it left bars nobody


def fill(found: ShardSet, held: ShardCache, count: int) -> None:
    """Fetch the first shards, each used a minute after the one before."""
    for number, shard in enumerate(found.shards[:count]):
        held.local(shard)
        os.utime(shard.path, (now := time.time() - 3600 + 60 * number, now))


def room(found: ShardSet, shards: int) -> int:
    """Bytes for the table and so many shards."""
    (table,) = found.shards[0].path.parent.glob("*.npy")
    os.utime(table)
    return table.stat().st_size + shards * max(shard.info.bytes for shard in found.shards)


def test_what_was_used_least_recently_makes_room(made: Path, server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    shards = found.shards
    held = ShardCache(room(found, 3))
    (cache / "000000.tar").write_bytes(bytes(BIG // 1000))  # somebody's own
    fill(found, held, 3)
    held.local(shards[0])
    with shards[1].path.open("rb") as reading:
        held.local(shards[3])
        assert [shard.path.exists() for shard in shards] == [True, False, True, True, False, False]
        assert hashlib.sha256(reading.read()).hexdigest() == shards[1].info.sha256
    held.local(shards[4])
    assert [shard.path.exists() for shard in shards] == [True, False, False, True, True, False]
    assert digest(held.local(shards[1])) == digest(made / "000001.tar")  # and again
    assert server.counts()["000001.tar"] == 2 and server.counts()["000000.tar"] == 1
    assert (cache / "000000.tar").stat().st_size == BIG // 1000


def test_whoever_waits_for_a_shard_makes_no_more_room_for_it(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(room(found, 3))
    fill(found, held, 3)
    server.faults["000003.tar"] = ["stall"]
    threads = [threading.Thread(target=held.local, args=(found.shards[3],)) for _ in range(2)]
    threads[0].start()
    until(lambda: sum(part.stat().st_size for part in cache.glob("*.part")))
    threads[1].start()
    time.sleep(0.1)
    server.released.set()
    for thread in threads:
        thread.join()
    assert [shard.path.exists() for shard in found.shards] == [False, True, True, True, False, False]


def test_a_shard_that_is_larger_than_the_cache(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(1)
    for shard in found.shards[:2]:
        assert held.local(shard).exists()
    assert [path.name for path in cache.iterdir()] == [found.shards[1].path.name]


def test_what_a_killed_fetcher_left_makes_room(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    left, busy = cache / f"{'a' * 64}.tar.part", cache / f"{'b' * 64}.tar.part"
    for path in (left, busy):
        path.write_bytes(bytes(10**6))
        os.utime(path, (0, 0))
    with transport.locked(busy, wait=False):
        ShardCache(room(found, 3)).local(found.shards[0])
        assert busy.exists() and not left.exists()
        busy.unlink()


def test_a_full_disk(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_shards(server.url, cache)
    held = ShardCache(BIG)
    fill(found, held, 3)
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if len(list(cache.glob("*.tar"))) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    held.local(found.shards[3])
    assert [shard.path.exists() for shard in found.shards[:4]] == [False, False, True, True]
    (cache / "other.tar").write_bytes(b"")
    (cache / "another.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"cache has no room left for http.*000005.tar: free some, set data.cache to"):
        held.local(found.shards[5])
    assert not list(cache.glob("*.part"))


def test_it_can_be_pickled(server: Server, cache: Path) -> None:
    held = ShardCache(12345)
    held.prefetch(find_shards(server.url, cache).shards)
    copy = pickle.loads(pickle.dumps(held))
    assert copy.max_bytes == 12345 and copy._thread is None


# Read as any others


def read(found: ShardSet, max_bytes: int, workers: int) -> list[str]:
    """The clips of two epochs, each 100 ms, as the stream has them."""
    order = ClipOrder(found, ClipRules(1600, "pad", 4, 0))
    stream = ClipStream(
        found,
        order,
        batch_size=3,
        sampling_rate=16000,
        training=True,
        max_bad_fraction=0.0,
        cache=ShardCache(max_bytes),
        batches=8,
    )
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
    rows = (row for batch in loader for row in zip(batch["keys"], batch["waveform"], strict=True))
    return [f"{key} {clip.sum().item()}" for key, clip in rows]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_from_elsewhere_is_the_stream_from_here(made: Path, server: Server, cache: Path, workers: int) -> None:
    here = read(find_shards(str(made)), 1, 0)
    assert len(here) == 24
    server.faults["000002.tar"] = ["500", "cut"]
    assert read(find_shards(server.url, cache), 10**9, workers) == here
    assert server.counts()["000001.tar"] == 1  # once for both epochs and both workers


def test_a_cache_that_holds_one_shard_is_enough(made: Path, server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    assert read(found, found.shards[0].info.bytes, 0) == read(find_shards(str(made)), 1, 0)
    assert len(list(cache.glob("*.tar"))) <= 2


def fetchers() -> int:
    """Threads of this process that fetch ahead."""
    return sum(thread.name == "fetch-ahead" for thread in threading.enumerate())


def stream_of(found: ShardSet, batches: int) -> ClipStream:
    order = ClipOrder(found, ClipRules(1600, "pad", 4, 0))
    return ClipStream(
        found,
        order,
        batch_size=1,
        sampling_rate=16000,
        training=True,
        max_bad_fraction=0.0,
        cache=ShardCache(BIG),
        batches=batches,
    )


@pytest.mark.parametrize("end", ["exhausted", "closed", "dropped", "interrupted", "failed"])
def test_nothing_is_fetched_ahead_once_a_stream_has_ended(
    server: Server, cache: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_shards(server.url, cache)
    stream = stream_of(found, 1 if end == "exhausted" else 9)
    needed = stream.source.reader.shard_of(stream.order.clip(0)[0].row).info.name
    server.faults = {shard.info.name: ["trickle", "always"] for shard in found.shards if shard.info.name != needed}
    batches = iter(stream)
    assert next(batches)["keys"]
    assert fetchers() == 1  # or this test tests nothing
    if end == "exhausted":
        assert not list(batches)
    elif end == "failed":
        monkeypatch.setattr(stream.source.reader, "audio", lambda _: [][0])
        with pytest.raises(IndexError):
            next(batches)
    elif end == "closed":
        batches.close()  # type: ignore[attr-defined]
    elif end == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del batches
    assert fetchers() == 0 and not list(cache.glob("*.part"))
    # And it can be read again.
    server.faults.clear()
    assert next(iter(stream_of(found, 1)))["keys"]


def test_a_server_that_stalls_does_not_keep_a_stream_from_ending(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "END_SECONDS", 0.1)
    found = find_shards(server.url, cache)
    held = ShardCache(BIG)
    server.faults["000000.tar"] = ["silent"]
    held.prefetch(found.shards)
    assert server.stalled.wait(30)
    held.close()
    assert fetchers() == 1
    server.released.set()
    until(lambda: not fetchers())
    assert server.counts() == {"000000.tar": 1} and not list(cache.glob("*.tar*"))


def test_a_shard_that_cannot_be_had_ends_the_stream(server: Server, cache: Path) -> None:
    found = find_shards(server.url, cache)
    server.faults["000003.tar"] = ["404", "always"]
    with pytest.raises(UserError, match=r"000003.tar could not be fetched.* goes on with --resume"):
        read(found, 10**9, 0)
    assert not list(cache.glob("*.part"))  # others were on their way
