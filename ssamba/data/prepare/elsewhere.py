"""Shards that are made here and put to a url, and how an interrupted call goes on there. Imports no torch.

A shard is put to OUT/<split>/000003.tar as soon as it is finished, so that this machine holds one of each worker at a
time; a split's index comes last, and what has none is no split. `OUT.partial` has plan.json, what decides the bytes,
and finished/<split>/000003.json, the record of each shard that is there: any machine can go on from them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ssamba.data.prepare.unfinished import Plan, other_plan, what_stays, with_what_stays
from ssamba.data.shards.index import INDEX_NAME, SAMPLES_NAME
from ssamba.data.shards.stores import check_writable
from ssamba.data.shards.transport import bytes_of, files_below, move, put, put_bytes, read_if_there, remove
from ssamba.errors import UserError
from ssamba.files import MOST_BYTES, parse_json
from ssamba.printable import masked


def new_url(text: str) -> str:
    """A url of a folder that can be written to, without a slash at its end; UserError if it is none."""
    check_writable(text)
    if "/" not in text.partition("://")[2].strip("/"):
        raise UserError(f"{masked(text)!r} names no folder; expected one in a bucket, such as s3://BUCKET/FOLDER")
    return text.rstrip("/")


def shard_url(out: str, split: str, index: int) -> str:
    """Where a shard is put."""
    return f"{out}/{split}/{index:06d}.tar"


def record_url(out: str, split: str, index: int) -> str:
    """Where the record of that shard is put."""
    return f"{_finished(out)}/{split}/{index:06d}.json"


def probe(folder: str) -> None:
    """UserError if no file can be put into a folder at a url: one is, and removed."""
    put_bytes(b"", f"{folder}/.probe")
    remove(f"{folder}/.probe")


def check_place(out: str, overwrite: bool) -> None:
    """UserError if nothing can be written there, or something is that is neither to be replaced nor unfinished."""
    probe(f"{out}.partial")
    there = files_below(out)
    if not there or read_if_there(_plan(out), MOST_BYTES) is not None:
        return
    if not overwrite:
        raise UserError(f"{out} exists; expected a new folder: give another, or replace it with --overwrite")
    for file in there:
        split, _, name = file.partition("/")
        if not split or "/" in name or not (name in (INDEX_NAME, SAMPLES_NAME) or name.endswith(".tar")):
            raise UserError(
                f"{out} holds more than folders of shards, so it is not overwritten: give another, or remove it "
                "yourself"
            )


@contextmanager
def unfinished_at(out: str, plan: Plan, overwrite: bool) -> Iterator[None]:
    """Shards may be put to `out`, new or with what an earlier call of the same plan has finished.

    What is of no use to the next call is gone at the end.

    Args:
        plan: name -> value of everything that decides the bytes.
        overwrite: first remove what is there, a whole data set or what a call of another plan has left.

    Raises:
        UserError: one of another plan is unfinished, or an error within, with a word on what stays.
    """
    written = read_if_there(_plan(out), MOST_BYTES)
    there = None if written is None else parse_json(written, dict[str, object], _plan(out), "the plan of a call")
    if there != plan:
        if not overwrite and (_count(out) or files_below(out)):
            raise UserError(other_plan(f"{out}.partial", there or {}, plan))
        remove(f"{out}.partial")
        remove(out)  # nothing, or what is to be overwritten
        put_bytes(json.dumps(plan).encode(), _plan(out))
    try:
        yield
    except UserError as error:
        if _count(out):
            raise UserError(*with_what_stays(error.args, how_to_go_on_at(out))) from error
        if not files_below(out):
            remove(f"{out}.partial")
        raise


def how_to_go_on_at(out: str) -> str:
    """What is told of the work that a call has done which did not come to its end."""
    return what_stays(_count(out), masked(out))


def publish_at(out: str, folder: Path, moves: Mapping[str, Mapping[int, int]]) -> None:
    """Make splits of the shards that were put, and remove the records.

    Args:
        folder: with a folder for each split, of its index and its table.
        moves: split -> index by which a shard was put -> the one that it is to have, both growing.
    """
    for split, indexes in moves.items():
        for old, new in indexes.items():
            if old != new:
                remove(record_url(out, split, old))
                move(shard_url(out, split, old), shard_url(out, split, new))
    for name in (SAMPLES_NAME, INDEX_NAME):
        for split in moves:
            put(folder / split / name, f"{out}/{split}/{name}")
    remove(f"{out}.partial")


def is_put(out: str, split: str, index: int, size: int) -> bool:
    """Whether a shard of so many bytes is there; one without samples has none."""
    return bytes_of(shard_url(out, split, index)) == size


def _plan(out: str) -> str:
    return f"{out}.partial/plan.json"


def _finished(out: str) -> str:
    return f"{out}.partial/finished"


def _count(out: str) -> int:
    return len(files_below(_finished(out)))
