"""Shards that are made here and put to a url, and how an interrupted call goes on there. Imports no torch.

A shard is put to OUT/<split>/000003.tar as soon as it is finished, so that this machine holds one of each worker at a
time; a split's index comes last, and what has none is no split. Any machine can go on from the records in OUT.partial.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ssamba.data.prepare.unfinished import (
    Finished,
    Plan,
    another_plan,
    check_new,
    record_name,
    renamed,
    shard_name,
    what_stays,
    with_what_stays,
)
from ssamba.data.shards.index import DESCRIPTIONS_NAME, INDEX_NAME, SAMPLES_NAME
from ssamba.data.shards.stores import check_writable
from ssamba.data.shards.transport import bytes_of, files_below, move, put, put_bytes, read_if_there, remove
from ssamba.errors import UserError
from ssamba.files import MOST_BYTES, parse_json, written_beside
from ssamba.printable import masked


def new_url(text: str) -> str:
    """A url of a folder that can be written to, without a slash at its end; UserError if it is none."""
    check_writable(text)
    if "/" not in text.partition("://")[2].strip("/"):
        raise UserError(f"{masked(text)!r} names no folder; expected one in a bucket, such as s3://BUCKET/FOLDER")
    return text.rstrip("/")


def probe(folder: str) -> None:
    """UserError if no file can be put into a folder at a url: one is, and removed."""
    put_bytes(b"", f"{folder}/.probe")
    remove(f"{folder}/.probe")


@dataclass(frozen=True)
class Url:
    """A folder at a url, as `new_url` gives it, with the methods of `unfinished.Folder`."""

    out: str

    def check(self, overwrite: bool) -> None:
        probe(f"{self.out}.partial")
        there = files_below(self.out)
        if there and read_if_there(self._plan, MOST_BYTES) is None:
            check_new(self.out, there, overwrite)

    @contextmanager
    def making(self, plan: Plan, splits: Iterable[str], overwrite: bool) -> Iterator[Path]:
        written = read_if_there(self._plan, MOST_BYTES)
        there = None if written is None else parse_json(written, dict[str, object], self._plan, "the plan of a call")
        if there != plan:
            if not overwrite and (self._count() or files_below(self.out)):
                raise another_plan(f"{self.out}.partial", there or {}, plan)
            remove(f"{self.out}.partial")
            remove(self.out)  # nothing, or what is to be overwritten
            put_bytes(json.dumps(plan).encode(), self._plan)
        try:
            with tempfile.TemporaryDirectory() as folder:
                for split in splits:
                    Path(folder, split).mkdir()
                yield Path(folder)
        except UserError as error:
            if self._count():
                raise UserError(*with_what_stays(error.args, self.how_to_go_on())) from error
            if not files_below(self.out):
                remove(f"{self.out}.partial")
            raise

    def write(self, split: str, index: int, make: Callable[[Path], Finished]) -> Finished:
        name = shard_name(index)
        with tempfile.TemporaryDirectory() as folder:
            with written_beside(path := Path(folder, name)) as beside:
                made = make(beside)
            remove(self._record(split, name))  # of what is about to be replaced, if anything
            if made.samples:
                put(path, f"{self.out}/{split}/{name}")
        put_bytes(msgspec.json.encode(made), self._record(split, name))
        return made

    def finished(self, split: str, index: int, digest: str) -> Finished | None:
        record = read_if_there(self._record(split, shard_name(index)), MOST_BYTES)
        if record is None:
            return None
        return Finished.of(record, index, digest, bytes_of(f"{self.out}/{split}/{shard_name(index)}"))

    def unseen(self, split: str, made: Finished) -> None:
        return None

    def publish(self, folder: Path, finished: Mapping[str, Sequence[Finished]]) -> None:
        for split, shards in finished.items():
            for old, new in renamed(shards):
                remove(self._record(split, old))
                move(f"{self.out}/{split}/{old}", f"{self.out}/{split}/{new}")
        for name in (DESCRIPTIONS_NAME, SAMPLES_NAME, INDEX_NAME):
            for split in finished:
                if (folder / split / name).exists():
                    put(folder / split / name, f"{self.out}/{split}/{name}")
        remove(f"{self.out}.partial")

    def how_to_go_on(self) -> str:
        return what_stays(self._count(), masked(self.out))

    @property
    def _plan(self) -> str:
        return f"{self.out}.partial/plan.json"

    def _record(self, split: str, shard: str) -> str:
        return f"{self.out}.partial/finished/{split}/{record_name(shard)}"

    def _count(self) -> int:
        return len(files_below(f"{self.out}.partial/finished"))
