"""What Weights & Biases logged offline: the config, the summary and the history of runs, from their logs alone.

A log, run-ID.wandb in wandb/offline-run-.../, is LevelDB's format of logs (blocks of 32 KiB, records with a checksum)
after a header of seven bytes; each record is a protobuf message `Record` of wandb.proto. This holds for wandb 0.30,
whose own reader, `wandb leet inspect`, is a program for a terminal, and does not end on a damaged log.
"""

import importlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssamba.comparison.runs import RECIPE_NAME, Run, check_scored, read_run
from ssamba.config import FinetuneRecipe, flat_recipe, load_recipe
from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.pictures import SECONDS
from ssamba.files import read_bounded, read_json

_EXPECTED = "a log of wandb 0.30, run-ID.wandb in wandb/offline-run-..."
_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_BLOCK = 1 << 15
_RECORD = struct.Struct("<IHB")  # checksum, bytes, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_STEP = "trainer/global_step"  # as Lightning's logger calls it
_MOST_LOGS = 10_000
_LEAST = 1e-12  # a probability, of which there is a logarithm


@dataclass(frozen=True)
class _Table:
    """A file of wandb.Table."""

    columns: list[Any]
    data: list[list[Any]]


@dataclass
class Log:
    """One start of a run as it was logged: its names, its config, what its summary has in the end, and its history."""

    path: Path
    run_id: str = ""
    project: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def find_logs(folder: Path, group: str | None = None) -> tuple[list[Run], list[str]]:
    """The fine-tuned runs whose logs are in a wandb directory, or below a folder of such, each with all its starts; and
    in words what was passed over.

    A log in the folder of its run, where training puts it, stands for that run: what a log does not have,
    such as the scores of examples, is read from there.

    Args:
        group: of wandb; None: of all.

    Raises:
        UserError: there is none, none of the group, one that is damaged, or one of another program; wandb is missing.
    """
    matches = sorted(folder.glob("**/run-*.wandb")) if folder.is_dir() else []
    paths = list({path.resolve(): path for path in matches[: _MOST_LOGS + 1]}.values())  # latest-run is a link to one
    if not paths:
        what = "holds no log" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"--wandb-dir {folder} {what}; expected a folder with {_EXPECTED}")
    if len(paths) > _MOST_LOGS:
        raise UserError(f"--wandb-dir {folder} holds more than {_MOST_LOGS} logs; expected fewer, such as a project's")
    logs = [read_log(path) for path in paths]
    if group is not None:
        known = sorted({log.group for log in logs if log.group})
        logs = [log for log in logs if log.group == group]
        if not logs:
            raise UserError(
                f"--group {group}: no log has it; expected one of {', '.join(known) or 'none: give no --group'}"
            )
    starts: dict[str, list[Log]] = {}
    for log in logs:
        starts.setdefault(log.run_id, []).append(log)
    runs = [run for some in starts.values() if (run := _run(some)) is not None]
    passed = len(starts) - len(runs)
    return runs, [f"{passed} logs of pretraining runs, which have no scores of examples"] if passed else []


def read_log(path: Path) -> Log:
    """Read one log, as far as it was written.

    Raises:
        UserError: it is none, its checksums are wrong, or wandb is not installed.
    """
    try:
        messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    except ImportError as error:
        raise UserError("--wandb-dir needs wandb, which is not installed: pip install 'ssamba[wandb]'") from error
    log = Log(path)
    for content in _records(read_bounded(path, _EXPECTED), path):
        try:
            record = messages.Record.FromString(content)
        except Exception as error:  # protobuf's own, which differ between its versions
            raise UserError(f"{path} is damaged: a record is no message; expected {_EXPECTED}") from error
        _take(log, record)
    if not log.run_id:
        raise UserError(f"{path} is of no run: it ends before it says of which; expected {_EXPECTED}")
    return log


def _records(content: bytes, path: Path) -> Iterator[bytes]:
    """The records of a log; without the last one if it was cut off there, as that of a process that was killed."""
    if content[: len(_HEADER)] != _HEADER:
        raise UserError(f"{path} is no log of wandb, or of another version of its format; expected {_EXPECTED}")
    place, parts = len(_HEADER), list[bytes]()
    while place + _RECORD.size <= len(content):
        if (left := _BLOCK - place % _BLOCK) < _RECORD.size:
            place += left
            continue
        checksum, size, kind = _RECORD.unpack_from(content, place)
        body = content[place + _RECORD.size : place + _RECORD.size + size]
        place += _RECORD.size + size
        if place > len(content):
            return
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum or kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            raise UserError(f"{path} is damaged at byte {place - size}; expected {_EXPECTED}, whole")
        parts = [body] if kind in (_WHOLE, _FIRST) else [*parts, body]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)


def _take(log: Log, record: Any) -> None:
    """What a record adds to a log."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        log.run_id, log.project, log.group = record.run.run_id, record.run.project, record.run.run_group
        _update(log.config, record.run.config)
        _update(log.summary, record.run.summary)
    elif kind == "config":
        _update(log.config, record.config)
    elif kind == "summary":
        _update(log.summary, record.summary)
    elif kind == "history":
        row: dict[str, Any] = {}
        _put(row, record.history.item)
        log.history.append(row)


def _update(target: dict[str, Any], change: Any) -> None:
    _put(target, change.update)
    for item in change.remove:
        *above, name = _names(item)
        _within(target, above).pop(name, None)


def _put(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *above, name = _names(item)
        try:
            _within(target, above)[name] = json.loads(item.value_json)
        except (ValueError, RecursionError):  # NaN and Infinity are numbers to Python's reader; anything else is none
            continue


def _names(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _within(target: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        inner = target.get(name)
        if not isinstance(inner, dict):
            inner = target[name] = {}
        target = inner
    return target


def _run(logs: Sequence[Log]) -> Run | None:
    """A run of all its starts, in the order of their folders' names, which are of the time; None of pretraining."""
    last = logs[-1]
    history = _history(logs)
    folder = next((above for above in last.path.resolve().parents[:4] if (above / RECIPE_NAME).is_file()), None)
    if folder is not None:
        if load_recipe(folder).task_type == "pretrain":
            return None
        run = read_run(folder)
        check_scored(run)
        return Run(run.place, run.recipe, run.record, run.folder, history)
    recipe = _recipe(last)
    if recipe is None:
        return None
    summary = dict(_numbers(last.summary))
    record: dict[str, Any] = {
        "data": {},
        "origin": None,
        "steps": int(summary.get("steps", max((row["step"] + 1 for row in history), default=0))),
        "training_seconds": summary.get("training_seconds", history[-1][SECONDS] if history else None),
        "parameters": summary.get("parameters"),
        "test": {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")},
    }
    metric = {"bce": "mAP", "ctc": "CER"}.get(recipe["task.loss"], "accuracy")
    if metric not in record["test"]:
        raise UserError(
            f"{last.path} has no test/{metric} in its summary; expected the log of a finished run that scored its test "
            "clips, or one that lies in its run folder"
        )
    # A log does not name groups of recordings, and without them its intervals would be too narrow.
    known = metric == "accuracy" and recipe["evaluation.group_by"] is None
    answers = _answers(last, int(record["test"].get("clips", 0))) if known else None
    return Run(str(last.path.parent), recipe, record, None, history, answers)


def _answers(log: Log, clips: int) -> tuple[Predictions, list[str]] | None:
    """The predictions in the table of test clips, if all of them are in it: the predicted class and its probability,
    the rest of which is divided among the other classes; None without such a table."""
    logged = [row["test/predictions"] for row in log.history if isinstance(row.get("test/predictions"), dict)]
    path = log.path.parent / "files" / str(logged[-1].get("path")) if logged else None
    if path is None or not path.is_file():
        return None
    table = read_json(path, _Table, "a table of test clips that wandb wrote")
    if len(table.data) < max(1, clips) or table.columns != ["key", "true", "predicted", "probability"]:
        return None
    try:
        keys, true, predicted = (list(map(str, column)) for column in list(zip(*table.data, strict=True))[:3])
        sure = torch.tensor([float(row[3]) for row in table.data], dtype=torch.float64).clamp(_LEAST, 1 - _LEAST)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be used: {error}; expected a table of test clips that wandb wrote") from error
    names = sorted({*true, *predicted})
    places = {name: place for place, name in enumerate(names)}
    chances = ((1 - sure) / max(1, len(names) - 1)).unsqueeze(1).repeat(1, len(names))
    chances[torch.arange(len(keys)), torch.tensor([places[name] for name in predicted])] = sure
    return Predictions(keys, chances.log(), torch.tensor([places[name] for name in true])), names


def _recipe(log: Log) -> dict[str, Any] | None:
    """The recipe in a log's config, flat, what it lacks as of an empty recipe; None of pretraining."""
    flat = dict(_flat(log.config))
    if flat.get("task_type") not in ("pretrain", "finetune"):
        raise UserError(
            f"{log.path} is of the project {log.project or 'without a name'}, and its config holds no recipe (no "
            "task_type); expected a log of ssamba, or one that lies in its run folder"
        )
    if flat["task_type"] == "pretrain":
        return None
    defaults = flat_recipe(FinetuneRecipe(run_dir=str(log.path.parent)))
    for key, default in defaults.items():
        value = flat.setdefault(key, default)
        if None not in (value, default) and not isinstance(
            value, (int, float) if type(default) is float else type(default)
        ):
            raise UserError(
                f"{log.path} has {key} {value!r:.100} in its config; expected a recipe's, such as {default!r}"
            )
    return {key: flat[key] for key in defaults}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections and flat keys alike: {"model": {"encoder": x}} and {"model.encoder": x}, or {"model/encoder": x}."""
    for key, value in config.items():
        name = prefix + key.replace("/", ".")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif _is_number(value):
            yield f"{prefix}{key}", float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _history(logs: Sequence[Log]) -> list[dict[str, float]]:
    """The rows as metrics.csv has them: of a resumed run, those up to its checkpoint and those after."""
    rows: list[dict[str, float]] = []
    seconds = 0.0
    for log in logs:
        log_rows = []
        for logged in log.history:
            row = {name: float(value) for name, value in logged.items() if _is_number(value)}
            runtime = row.get("_runtime", 0.0)
            row = {name: value for name, value in row.items() if not name.startswith("_")}
            if len(row) > 1 and _STEP in row:  # others have pictures and tables
                row["step"] = row.pop(_STEP)
                row[SECONDS] = seconds + runtime
                log_rows.append(row)
        if log_rows:
            rows = [row for row in rows if row["step"] < log_rows[0]["step"]] + log_rows
            seconds = log_rows[-1][SECONDS]
    return rows
