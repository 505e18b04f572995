"""The folder in which shards are made, and from which an interrupted call goes on. Imports no torch.

`OUT.partial` lies beside OUT: lock, held while a call works there; plan.json, what decides the bytes; finished/, the
shards that are done, each with a record; whole/, all of them with their names, which becomes OUT; moves.json, where
those came from, so that a call that ends in between loses nothing.
"""

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from ssamba.errors import UserError
from ssamba.files import TEMPORARY, open_unlinked, read_json, to_disk, write_json

log = logging.getLogger(__name__)

Plan = Mapping[str, str | int | float]
# Names within a partial folder, and nowhere else.
_New = Annotated[str, msgspec.Meta(pattern=r"^whole/[^/.\x00][^/\x00]*/[^/.\x00][^/\x00]*$")]
_Old = Annotated[str, msgspec.Meta(pattern=r"^finished/[^/.\x00][^/\x00]*/[^/.\x00][^/\x00]*$")]

_PLAN, _MOVES = "plan.json", "moves.json"
_MOST_HOLDER = 200  # bytes of what the lock says of its holder


def partial_folder(out: Path) -> Path:
    """Where the shards of `out` are made."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def unfinished(out: Path, plan: Plan, overwrite: bool) -> Iterator[Path]:
    """The partial folder of `out`, new or with what an earlier call of the same plan has finished.

    It is gone at the end if `publish` was reached, and after an error or an interrupt if nothing in it is finished.

    Args:
        plan: name -> value of everything that decides the bytes.
        overwrite: discard what a call of another plan has left.

    Raises:
        UserError: another call writes to `out` now, one of another plan is unfinished, or nothing can be written; an
            error within, with a word on what stays.
    """
    folder = partial_folder(out)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder / "lock", out))
            _adopt(folder, plan, overwrite)
        except OSError as error:
            raise UserError(f"{folder} cannot be made or used ({error}); expected a place to write") from error
        try:
            yield folder
        except (UserError, OSError) as error:
            said = (f"the shards cannot be written to {out}: {error}",) if isinstance(error, OSError) else error.args
            raise UserError(*(with_what_stays(said, how_to_go_on(out)) if _finished(folder) else said)) from error
        finally:
            if not _finished(folder):
                shutil.rmtree(folder, ignore_errors=True)


def how_to_go_on(out: Path) -> str:
    """What is told of the work that a call has done which did not come to its end."""
    folder = partial_folder(out)
    return what_stays(_finished(folder), folder)


def what_stays(shards: int, place: object) -> str:
    """What is told of that many finished shards."""
    if not shards:
        return "No shards were written"
    return f"Finished shards ({shards}) stay in {place}: the same call goes on from them"


def with_what_stays(said: Sequence[str], stays: str) -> Sequence[str]:
    """The message of an error and its details, with a word on what stays: in the message, or as the last detail."""
    return [*said, stays] if said[1:] else [f"{said[0].rstrip('.')}. {stays}"]


def publish(folder: Path, out: Path, moves: Mapping[str, str]) -> None:
    """Make `out` of folder/whole, in place of what is there, and remove the partial folder.

    Args:
        moves: file of whole/ -> the file of finished/ that becomes it; both relative to the folder.
    """
    write_json(folder / _MOVES, moves)
    for path in (folder / _MOVES, *folder.glob("whole/*/*")):
        to_disk(path)
    for new, old in moves.items():
        os.replace(folder / old, folder / new)
    if out.exists():
        shutil.rmtree(folder / "replaced", ignore_errors=True)
        out.rename(folder / "replaced")
    (folder / "whole").rename(out)
    shutil.rmtree(folder)


def _finished(folder: Path) -> int:
    """How many shards are finished: each has a record, which is written last."""
    return sum(1 for _ in folder.glob("finished/*/*.json"))


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    with open_unlinked(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read(_MOST_HOLDER).decode(errors="replace")
            raise UserError(
                f"{out} is being written by {holder or 'another call'}: let that end, or give another folder"
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): let no other call write to %s meanwhile", path, error, out)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def _adopt(folder: Path, plan: Plan, overwrite: bool) -> None:
    """Take over what is in a partial folder if it is of this plan; else discard it, or complain."""
    there = _read_plan(folder / _PLAN)
    foreign = {name for name in os.listdir(folder) if name != "lock" and not name.startswith(TEMPORARY)}
    if there is None and foreign:
        raise UserError(
            f"{folder} holds {min(foreign)} and no {_PLAN}, so it is no writer's: rename it, or give another folder"
        )
    if there is not None and there != plan:
        if _finished(folder) and not overwrite:
            raise UserError(other_plan(folder, there, plan))
        for name in set(os.listdir(folder)) - {"lock"}:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    write_json(folder / _PLAN, plan)
    if (folder / _MOVES).exists():
        moves = read_json(folder / _MOVES, dict[_New, _Old], f"what a writer put there: remove {folder}")
        for new, old in moves.items():
            if (folder / new).exists():
                os.replace(folder / new, folder / old)
        (folder / _MOVES).unlink()
    shutil.rmtree(folder / "whole", ignore_errors=True)
    for place in (folder, *folder.glob("finished/*")):
        for left in place.glob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)
    if done := _finished(folder):
        log.info("going on from the %d shards that an earlier call has finished in %s", done, folder)


def other_plan(place: object, there: Mapping[str, object], plan: Plan) -> str:
    """What is told of a call that would go on from another one's work."""
    names = [name for name in {**there, **plan} if there.get(name) != plan.get(name)]
    differ = "; ".join(f"{name}: {there.get(name)} there, {plan.get(name)} now" for name in names)
    return (
        f"{place} is what another call has left unfinished ({differ}); expected the same call again, or --overwrite, "
        "which discards it"
    )


def _read_plan(path: Path) -> dict[str, object] | None:
    """The plan of an earlier call; None: there is none, {}: it is damaged."""
    if not path.exists():
        return None
    try:
        return read_json(path, dict[str, object], "the plan of a call")
    except UserError:
        return {}
