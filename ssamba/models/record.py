"""run.json: what a run says of itself, for model cards, comparisons and whoever would make it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssamba.files import Count, Sha256, read_json

RECORD_NAME = "run.json"
_EXPECTED = "the record of a finished run, as training writes it"


@dataclass(frozen=True)
class Hardware:
    """The processor's name, the threads that torch used, the GPUs' names."""

    processor: str
    threads: Count
    gpus: list[str]


@dataclass(frozen=True)
class SplitRecord:
    """What a split held; of shards without an index their number is known, and no more."""

    samples: Count | None
    seconds: float | None
    fingerprint: str
    shards: Count | None = None


@dataclass(frozen=True)
class Origin:
    """Of the run that made the weights that a run started from: its recipe, flat, and what its own record says."""

    recipe: dict[str, Any]
    seed: Count
    steps: Count
    training_seconds: float
    parameters: Count
    data: dict[str, SplitRecord]
    origin: "Origin | None" = None


@dataclass(frozen=True)
class Start:
    """What is known when a run starts. origin: of its weights; None from scratch, or where nothing is known.
    teacher_sha256: of the weights of the model that it learned from by distillation, if there was one."""

    command: list[str]
    started: str
    seed: Count
    versions: dict[str, str]
    hardware: Hardware
    parameters: Count
    data: dict[str, SplitRecord]
    resumed: list[dict[str, Any]]
    origin: Origin | None = field(default=None, kw_only=True)
    teacher_sha256: Sha256 | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RunRecord(Start):
    """A finished run. Scores that were not finite are null in JSON."""

    steps: Count
    training_seconds: float
    last_metrics: dict[str, float | None]
    test: dict[str, float | None]
    peak_memory_bytes: dict[str, Count] = field(default_factory=dict)
    energy_joules: float | None = None


def read_record(path: Path) -> dict[str, Any]:
    """A run.json, all its fields, those of `RunRecord` checked.

    Raises:
        UserError: it cannot be read, or is none.
    """
    read_json(path, RunRecord, _EXPECTED)
    return read_json(path, dict[str, Any], _EXPECTED)


def split_text(split: Mapping[str, Any]) -> str:
    """What a `SplitRecord` says that a split held, in words."""
    if split["samples"] is None or split["seconds"] is None:
        return f"{split.get('shards') or 0:,} shards without an index"
    return f"{split['samples']:,} recordings, {split['seconds'] / 3600:.2f} h"
