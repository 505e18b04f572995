"""Files that are either complete or not there."""

import json
import os
from collections.abc import Mapping
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
