"""Files and folders that are either complete or not there."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)


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
