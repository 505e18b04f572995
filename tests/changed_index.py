"""An index and its table that say something else than they did, in a copy of shards that may be damaged."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def changed(folder: Path, **values: Any) -> None:
    """Change values of an index; its totals are those of its shards."""
    path = folder / "index.json"
    content = {**json.loads(path.read_text()), **values}
    if "shards" in values:
        totals = {name: [shard[name] for shard in values["shards"]] for name in ("samples", "seconds")}
        content |= {name: sum(each) for name, each in totals.items() if not any(isinstance(one, str) for one in each)}
    path.write_text(json.dumps(content))


def table(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the table of a folder, and the index with it."""
    samples = np.load(folder / "samples.npy")
    change(samples)
    np.save(folder / "samples.npy", samples)
    changed(folder, samples_sha256=hashlib.sha256((folder / "samples.npy").read_bytes()).hexdigest())
