"""Files and folders that are either complete or not there."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssamba.errors import UserError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` at the end; removed if that is not reached."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_out(path: Path, overwrite: bool) -> None:
    """UserError if a file cannot be written there: no folder, or it exists and is not to be replaced."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file to write")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it")


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename."""
    with written_beside(path) as beside:
        beside.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`content` as indented JSON, by `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled: put in its place at the end, removed if it was not finished.

    What stood in that place goes once the new folder stands there.
    """
    beside, old = folder.with_name(f"{folder.name}.tmp"), folder.with_name(f"{folder.name}.old-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        replaced = folder.exists()
        if replaced:
            os.replace(folder, old)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if replaced:
        shutil.rmtree(old)
