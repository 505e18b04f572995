"""A writer that was interrupted, killed or refused, and the call after it."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba.data.prepare import unfinished, writer
from ssamba.data.prepare.recordings import Recording, drawn
from ssamba.data.prepare.unfinished import Finished
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import finish_shard, write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.errors import UserError

SHARDS = 6
FOLDER = Path(__file__).parents[3] / "data_prep" / "folder.py"


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "noise").mkdir(parents=True)
    paths = [tmp_path / "in" / "noise" / f"{number}.wav" for number in range(2 * SHARDS)]
    for path in paths:
        soundfile.write(path, rng.normal(0, 0.1, 3200), 16000)
    return [Recording(path.stem, path, {"label": "noise"}) for path in paths]


def write(recordings: list[Recording], out: Path, **settings: Any) -> ShardIndex:
    return write_shards({"train": recordings}, out, "toy", **{"samples_per_shard": 2, **settings})["train"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Name -> inode and time of change of each finished shard."""
    tars = out.with_name(f"{out.name}.partial").glob("whole/train/*.tar")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tars}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write until so many shards are finished; then this is raised."""

    def run(recordings: list[Recording], out: Path, after: int, error: BaseException, **settings: Any) -> None:
        made: list[Finished] = []

        def finish(job: Any) -> Finished:
            if len(made) == after:
                raise error
            made.append(finish_shard(job))
            return made[-1]

        with monkeypatch.context() as patch, pytest.raises((UserError, type(error))):
            patch.setattr("ssamba.data.prepare.writer.finish_shard", finish)
            write(recordings, out, **settings)
        assert len(finished(out)) == after

    return run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the shards that are made, not found."""
    numbers: list[int] = []
    make = writer.write_shard

    def counted(job: Any, *rest: Any) -> Finished:
        numbers.append(job.index)
        return make(job, *rest)

    monkeypatch.setattr(writer, "write_shard", counted)
    return numbers


def wait_until(reached: Callable[[], bool]) -> None:
    for _ in range(30000):
        if reached():
            return
        time.sleep(0.002)
    raise AssertionError("it was never reached")


def none_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 recordings, in/, and what is made of them by a call that nothing disturbs, shards/."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "in" / "noise").mkdir(parents=True)
    paths = [folder / "in" / "noise" / f"{number}.wav" for number in range(60)]
    soundfile.write(paths[0], np.random.default_rng(0).normal(0, 0.1, (5 * 44100, 2)), 44100)
    for path in paths[1:]:
        os.link(paths[0], path)
    found = [Recording(f"noise-{path.stem}", path, {"label": "noise"}) for path in paths]
    write_shards({"train": found}, folder / "shards", "in", samples_per_shard=1)
    return folder


@pytest.mark.parametrize(("workers", "kind"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_writer_that_is_killed_or_interrupted(many: Path, tmp_path: Path, workers: int, kind: signal.Signals) -> None:
    """A real one, as soon as some of its shards are seen to be finished; a second call goes on from them."""
    source, out = many / "in", tmp_path / "out"
    call = [sys.executable, str(FOLDER), str(source), str(out), "--samples-per-shard=1", f"--workers={workers}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(call, start_new_session=True, env=environment, stderr=subprocess.PIPE, text=True) as writer:
        try:
            records = tmp_path / "out.partial" / "finished" / "train"
            wait_until(lambda: len(list(records.glob("*.json"))) >= 5 or writer.poll() is not None)
            os.killpg(writer.pid, kind) if kind == signal.SIGINT else writer.kill()
            assert writer.stderr
            said = writer.stderr.read()
            assert writer.wait() == (130 if kind == signal.SIGINT else -signal.SIGKILL), said
        finally:
            wait_until(lambda: none_left(writer.pid))
    before = finished(out)
    assert 5 <= len(before) < 60 and not out.exists()
    if kind == signal.SIGINT:
        told, _, rest = said.rpartition("interrupted. Finished shards (")[2].partition(")")
        assert rest == f" stay in {out}.partial: the same call goes on from them\n"
        assert len(before) - workers <= int(told) <= len(before)  # the workers may have finished theirs meanwhile

    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    kept = done.stderr.partition("going on from the ")[2].partition(" ")[0]
    assert len(before) - workers <= int(kept) <= len(before)
    assert not (tmp_path / "out.partial").exists()
    after = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / "train").glob("*.tar")}
    assert len(set(before.values()) & after) >= int(kept)
    assert digests(out) == digests(many / "shards")
    assert verify_shards(find_shards(str(out / "train")), progress=False) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_call_goes_on(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int], workers: int
) -> None:
    write(recordings, tmp_path / "undisturbed")
    made.clear()
    stopped(recordings, tmp_path / "out", 2, KeyboardInterrupt())
    stopped(recordings[::-1], tmp_path / "out", 4, KeyboardInterrupt())  # their order decides nothing
    assert made == [0, 1, 2, 3] and not (tmp_path / "out").exists()
    write(recordings, tmp_path / "out", workers=workers)
    assert workers == 2 or made == [0, 1, 2, 3, 4, 5]
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "undisturbed"]


def test_an_interrupt_before_anything_is_finished_leaves_nothing(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None]
) -> None:
    stopped(recordings, tmp_path / "out", 0, KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_recording_that_changed_meanwhile(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int]
) -> None:
    """Its shard is made anew, and no other."""
    stopped(recordings, tmp_path / "out", 5, KeyboardInterrupt())
    first = min(recordings, key=lambda one: drawn(0, one.key))
    soundfile.write(first.path, np.zeros(1600), 16000)
    made.clear()
    write(recordings, tmp_path / "out")
    assert made == [0, 5]
    write(recordings, tmp_path / "undisturbed")
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


def test_what_an_earlier_call_skipped_counts(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int]
) -> None:
    for one in recordings[:2]:
        one.path.write_text("no audio")
    message = (
        r"2 of 12 recordings are unusable so far; at most 1 may be(.|\n)*Finished shards \(\d\) stay in .*out.partial"
    )
    with pytest.raises(UserError, match=message):
        write(recordings, tmp_path / "out", max_bad_fraction=0.1)
    already = len(made)
    with pytest.raises(UserError, match="2 of 12 recordings are unusable so far"):
        write(recordings, tmp_path / "out", max_bad_fraction=0.1)
    assert len(made) == already
    index = write(recordings, tmp_path / "out", max_bad_fraction=0.2)  # which decides no bytes, so it may be another
    assert sorted(made) == list(range(SHARDS))
    assert index.samples == 10 and {one.source for one in index.skipped} == {"0.wav", "1.wav"}


@pytest.mark.parametrize(
    ("settings", "differ"),
    [
        ({"sampling_rate": 8000}, "sampling_rate: 16000 there, 8000 now"),
        ({"samples_per_shard": 3, "seed": 1}, "samples_per_shard: 2 there, 3 now; seed: 0 there, 1 now"),
        ({"max_seconds": 5.0}, "max_seconds: 600.0 there, 5.0 now"),
    ],
)
def test_settings_of_another_call(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], settings: dict[str, Any], differ: str
) -> None:
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    before = digests(tmp_path / "out.partial")
    with pytest.raises(UserError) as raised:
        write(recordings, tmp_path / "out", **settings)
    assert f"out.partial is what another call has left unfinished ({differ}); expected the same call" in str(
        raised.value
    )
    assert digests(tmp_path / "out.partial") == before
    write(recordings, tmp_path / "out", **settings, overwrite=True)
    write(recordings, tmp_path / "undisturbed", **settings)
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda these: these[1:],
        lambda these: [Recording(one.key, one.path, {"label": "hum"}) for one in these],
        lambda these: [Recording(one.key, one.path, one.labels, 0.1) for one in these],
    ],
)
def test_recordings_of_another_call(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], change: Any
) -> None:
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    with pytest.raises(UserError, match=r"\(split train: 12 recordings \(\w+\) there, 1[12] recordings \(\w+\) now\)"):
        write(change(recordings), tmp_path / "out")
    assert len(finished(tmp_path / "out")) == 3


def test_another_call_that_finished_nothing_is_discarded(recordings: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "plan.json").write_text('{"seed": 1')
    assert write(recordings, tmp_path / "out").samples == 12


def test_a_folder_of_that_name_which_is_no_writers(recordings: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"out.partial holds thesis.txt and no plan.json, so it is no writer's"):
            write(recordings, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


def test_two_writers_at_once(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(job: Any) -> Finished:
        with pytest.raises(UserError, match=rf"out is being written by process {os.getpid()} on .*: let that end"):
            write(recordings, tmp_path / "out", overwrite=True)
        return finish_shard(job)

    with monkeypatch.context() as patch:
        patch.setattr("ssamba.data.prepare.writer.finish_shard", second)
        assert write(recordings, tmp_path / "out").samples == 12

    stopped(recordings, tmp_path / "other", 3, KeyboardInterrupt())
    before = digests(tmp_path / "other.partial")
    with (tmp_path / "other.partial" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="other is being written by"):
            write(recordings, tmp_path / "other")
    assert digests(tmp_path / "other.partial") == before


def test_a_file_system_without_locks(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert write(recordings, tmp_path / "out").samples == 12
    assert "let no other call write to" in caplog.text


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_kill_while_the_shards_get_their_names(
    recordings: list[Recording], tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Those behind one that nothing is in; what has been moved is made again."""
    order = sorted(recordings, key=lambda one: drawn(0, one.key))
    for one in order[4:6]:  # of shard 2 of 6
        one.path.write_text("no audio")
    replace, moves = os.replace, []

    def killed(old: Path, new: Path) -> None:
        if not Path(old).name.startswith(".ssamba"):
            if len(moves) == moved:
                raise KeyboardInterrupt
            moves.append(new)
        replace(old, new)

    def rename(path: Path, new: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(unfinished.os, "replace", killed)
        patch.setattr(Path, "rename", rename)
        write(recordings, tmp_path / "out", max_bad_fraction=0.5)
    assert len(moves) == moved and not (tmp_path / "out").exists()
    made.clear()
    write(recordings, tmp_path / "out", max_bad_fraction=0.5)
    assert made == list(range(3, 3 + min(3, moved + 1)))
    write(recordings, tmp_path / "undisturbed", max_bad_fraction=0.5)
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


def test_a_kill_while_the_old_shards_are_replaced(
    recordings: list[Recording], tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(recordings[:4], out)
    old = digests(out)
    rename = Path.rename

    def killed(path: Path, new: Path) -> Path:
        if path.name == "whole":
            raise KeyboardInterrupt
        return rename(path, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        write(recordings, out, overwrite=True)
    assert not out.exists() and digests(tmp_path / "out.partial" / "replaced") == old
    made.clear()
    assert write(recordings, out, overwrite=True).samples == 12
    assert made == [] and not (tmp_path / "out.partial").exists()


def test_an_interrupted_overwrite_goes_on_and_spares_the_old_until_then(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int]
) -> None:
    out = tmp_path / "out"
    write(recordings[:4], out)
    old = digests(out)
    made.clear()
    stopped(recordings, out, 4, KeyboardInterrupt(), overwrite=True)
    assert digests(out) == old
    with pytest.raises(UserError, match="out exists"):
        write(recordings, out)
    assert write(recordings, out, overwrite=True).samples == 12
    assert made == list(range(SHARDS))


def test_a_record_without_its_shard(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int]
) -> None:
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    gone, torn = sorted((tmp_path / "out.partial" / "whole" / "train").glob("*.tar"))[:2]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:5000])
    made.clear()
    write(recordings, tmp_path / "out")
    assert made == [0, 1, 3, 4, 5]
    assert verify_shards(find_shards(str(tmp_path / "out" / "train")), progress=False) == []


def test_what_is_half_written_is_cleared_away(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None]
) -> None:
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    torn = tmp_path / "out.partial" / "whole" / "train" / ".ssamba-tmp-0123.tar"
    torn.write_text("half")
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    assert not torn.exists()


def test_the_plan_on_disk(recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None]) -> None:
    stopped(recordings, tmp_path / "out", 1, KeyboardInterrupt())
    plan = json.loads((tmp_path / "out.partial" / "plan.json").read_text())
    assert {name: plan[name] for name in ("sampling_rate", "samples_per_shard", "seed", "max_seconds")} == {
        "sampling_rate": 16000,
        "samples_per_shard": 2,
        "seed": 0,
        "max_seconds": 600.0,
    }
    assert plan["split train"].startswith("12 recordings (") and "libsndfile" in plan["libraries"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"[" * 10**5, b"\xff", None])
def test_a_damaged_record(
    recordings: list[Recording], tmp_path: Path, stopped: Callable[..., None], made: list[int], content: bytes | None
) -> None:
    """Its shard is made again."""
    stopped(recordings, tmp_path / "out", 3, KeyboardInterrupt())
    first = min((tmp_path / "out.partial" / "finished" / "train").glob("*.json"))
    said = json.loads(first.read_bytes())
    odd = json.dumps({**said, "samples": said["samples"][4:]}).encode()
    first.write_bytes(odd if content is None else content)
    made.clear()
    write(recordings, tmp_path / "out")
    assert made[0] == 0 and len(made) == 4
    assert verify_shards(find_shards(str(tmp_path / "out" / "train")), progress=False) == []
