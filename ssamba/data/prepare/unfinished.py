"""Where shards are made, and from where an interrupted call goes on: in a folder, or at a url (`elsewhere`). Imports no
torch.

`OUT.partial` has plan.json, what decides the bytes, and finished/<split>/000003.json, the record of each shard that is
finished. In a folder it has also lock, held while a call works there, and whole/<split>/000003.tar, the shards, which
becomes OUT when all of it is there.
"""

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec
import numpy as np

from ssamba.data.shards.index import (
    DESCRIPTIONS_NAME,
    INDEX_NAME,
    SAMPLE,
    SAMPLES_NAME,
    Samples,
    ShardInfo,
    Skipped,
)
from ssamba.errors import UserError
from ssamba.files import (
    TEMPORARY,
    Count,
    open_unlinked,
    parse_json,
    read_bounded,
    read_json,
    to_disk,
    write_json,
    written_beside,
)

log = logging.getLogger(__name__)

Plan = Mapping[str, str | int | float]

_PLAN = "plan.json"
_MOST_HOLDER = 200  # bytes of the lock's text about its holder


@dataclass(frozen=True)
class Finished:
    """A finished shard, as its record has it."""

    info: ShardInfo
    samples: bytes
    """Rows of SAMPLE."""
    skipped: tuple[Skipped, ...]
    above_full_scale: Count
    """How many of its samples have a full scale of their own."""
    host: str
    """That it was made on."""
    digest: str
    """Of all that decides its bytes."""

    @property
    def table(self) -> Samples:
        return np.frombuffer(self.samples, SAMPLE)

    @classmethod
    def of(cls, record: bytes, index: int, digest: str, size: int | None) -> "Finished | None":
        """From a record; None if that is damaged or of other recordings, or a shard of so many bytes is not it."""
        try:
            finished = parse_json(record, cls, "", "the record of a shard")
        except UserError:
            return None
        right = (finished.info.name, finished.digest, len(finished.samples) // SAMPLE.itemsize)
        whole = not finished.samples or finished.info.bytes == size
        return finished if right == (shard_name(index), digest, finished.info.samples) and whole else None


def shard_name(index: int) -> str:
    return f"{index:06d}.tar"


def renamed(finished: Sequence[Finished]) -> Iterator[tuple[str, str]]:
    """The shards that are numbered anew: what each is called, and what it is to be, in this order."""
    pairs = ((one.info.name, shard_name(index)) for index, one in enumerate(finished))
    return ((old, new) for old, new in pairs if old != new)


def record_name(shard: str) -> str:
    return str(PurePath(shard).with_suffix(".json"))


def what_stays(shards: int, place: object) -> str:
    """The message about that many finished shards."""
    if not shards:
        return "No shards were written"
    return f"Finished shards ({shards}) stay in {place}: the same call goes on from them"


def with_what_stays(messages: Sequence[str], stays: str) -> Sequence[str]:
    """An error's message and details with a note on what stays: in the message, or as the last detail."""
    return [*messages, stays] if messages[1:] else [f"{messages[0].rstrip('.')}. {stays}"]


def another_plan(place: object, there: Mapping[str, object], plan: Plan) -> UserError:
    """The message about a call that would continue another one's work."""
    names = [name for name in {**there, **plan} if there.get(name) != plan.get(name)]
    differ = "; ".join(f"{name}: {there.get(name)} there, {plan.get(name)} now" for name in names)
    return UserError(
        f"{place} is what another call has left unfinished ({differ}); expected the same call again, or --overwrite, "
        "which discards it"
    )


def check_new(out: object, files: Sequence[str], overwrite: bool) -> None:
    """UserError if what is in a place, files by their names below it, is not to be overwritten."""
    if not overwrite:
        raise UserError(f"{out} exists; expected a new folder: give another, or replace it with --overwrite")
    for file in files:
        split, _, name = file.partition("/")
        ours = name in (INDEX_NAME, SAMPLES_NAME, DESCRIPTIONS_NAME) or name.endswith(".tar")
        if not name or "/" in name or not ours:
            raise UserError(
                f"{out} holds more than folders of shards, so it is not overwritten: give another, or remove it "
                "yourself"
            )


@dataclass(frozen=True)
class Folder:
    """A folder of this machine's, or one that other machines see under the same path; `out` is absolute."""

    out: Path

    @property
    def partial(self) -> Path:
        """Where its shards are made."""
        return self.out.with_name(f"{self.out.name}.partial")

    def check(self, overwrite: bool) -> None:
        """UserError if there is something that is not to be replaced."""
        if self.out.exists():
            below = (*self.out.glob("*"), *self.out.glob("*/*"))
            files = [str(path.relative_to(self.out)) for path in below if path.parent != self.out or not path.is_dir()]
            check_new(self.out, files if self.out.is_dir() else [""], overwrite)

    @contextmanager
    def making(self, plan: Plan, splits: Iterable[str], overwrite: bool) -> Iterator[Path]:
        """Shards may be made, with what an earlier call of the same plan has finished; the folder for the indexes.

        All of it is gone at the end if `publish` was reached, and after an error or an interrupt if nothing is
        finished.

        Args:
            plan: name -> value of everything that decides the bytes.
            overwrite: discard what a call of another plan has left.

        Raises:
            UserError: another call writes to `out` now, one of another plan is unfinished, or nothing can be written;
                an error within, with a word on what stays.
        """
        folder = self.partial
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked())
                self._adopt(plan, overwrite)
                for split in splits:
                    for part in ("finished", "whole"):
                        (folder / part / split).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder} cannot be made or used ({error}); expected a place to write") from error
            try:
                yield folder / "whole"
            except (UserError, OSError) as error:
                messages = error.args
                if isinstance(error, OSError):
                    messages = (f"the shards cannot be written to {self.out}: {error}",)
                raise UserError(
                    *(with_what_stays(messages, self.how_to_go_on()) if self._count() else messages)
                ) from error
            finally:
                if not self._count():
                    shutil.rmtree(folder, ignore_errors=True)

    def write(self, split: str, index: int, make: Callable[[Path], Finished]) -> Finished:
        """Have a shard made in a file, and keep it and its record, or of one that nothing is in the record alone."""
        name = shard_name(index)
        shard = self.partial / "whole" / split / name
        if not shard.parent.is_dir():
            raise UserError(
                f"a worker on {socket.gethostname()} does not see {shard.parent}; expected OUT under a path that leads "
                "all workers to the same place"
            )
        record = self.partial / "finished" / split / record_name(name)
        record.unlink(missing_ok=True)
        with written_beside(shard, durable=True) as beside:
            made = make(beside)
        if not made.samples:
            shard.unlink()
        with written_beside(record, durable=True) as beside:
            beside.write_bytes(msgspec.json.encode(made))
        return made

    def finished(self, split: str, index: int, digest: str) -> Finished | None:
        """A shard that is there, made of what has this digest."""
        shard = self.partial / "whole" / split / shard_name(index)
        record = self.partial / "finished" / split / record_name(shard.name)
        try:
            content = read_bounded(record, "the record of a shard")
        except UserError:  # there is none
            return None
        return Finished.of(content, index, digest, shard.stat().st_size if shard.exists() else None)

    def unseen(self, split: str, made: Finished) -> Path | None:
        """Where a shard should be that a worker has made, if it is not there."""
        shard = self.partial / "whole" / split / made.info.name
        return None if shard.exists() or not made.samples else shard

    def publish(self, folder: Path, finished: Mapping[str, Sequence[Finished]]) -> None:
        """Make `out` of what is finished, the shards numbered as they come, and of the indexes in the folder."""
        for split, shards in finished.items():
            for old, new in renamed(shards):
                (self.partial / "finished" / split / record_name(old)).unlink()
                os.replace(folder / split / old, folder / split / new)
            for path in (folder / split).iterdir():
                to_disk(path)
        if self.out.exists():
            shutil.rmtree(self.partial / "replaced", ignore_errors=True)
            self.out.rename(self.partial / "replaced")
        folder.rename(self.out)
        shutil.rmtree(self.partial)

    def how_to_go_on(self) -> str:
        """The message about the work of a call that was interrupted."""
        return what_stays(self._count(), self.partial)

    def _count(self) -> int:
        """How many shards are finished: each has a record, which is written last."""
        return sum(1 for _ in self.partial.glob("finished/*/*.json"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.partial / "lock"
        with open_unlinked(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.read(_MOST_HOLDER).decode(errors="replace")
                raise UserError(
                    f"{self.out} is being written by {holder or 'another call'}: let that end, or give another folder"
                ) from error
            except OSError as error:
                log.warning("%s cannot be locked (%s): let no other call write to %s meanwhile", path, error, self.out)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            yield

    def _adopt(self, plan: Plan, overwrite: bool) -> None:
        """Take over what is in the partial folder if it is of this plan; else discard it, or complain."""
        folder = self.partial
        there = self._plan()
        foreign = {name for name in os.listdir(folder) if name != "lock" and not name.startswith(TEMPORARY)}
        if there is None and foreign:
            raise UserError(
                f"{folder} holds {min(foreign)} and no {_PLAN}, so it is no writer's: rename it, or give another folder"
            )
        if there is not None and there != plan:
            if self._count() and not overwrite:
                raise another_plan(folder, there, plan)
            for name in set(os.listdir(folder)) - {"lock"}:
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        write_json(folder / _PLAN, plan)
        for left in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"*/*/{TEMPORARY}*")):
            left.unlink(missing_ok=True)
        if done := self._count():
            log.info("going on from the %d shards that an earlier call has finished in %s", done, folder)

    def _plan(self) -> dict[str, object] | None:
        """That of an earlier call; None: there is none, {}: it is damaged."""
        if not (self.partial / _PLAN).exists():
            return None
        try:
            return read_json(self.partial / _PLAN, dict[str, object], "the plan of a call")
        except UserError:
            return {}
