"""Lists of recordings as people and programs write them: tables, JSON and JSON lines. Imports no torch.

A table has commas, tabs, semicolons or bars between its fields, that of which its first line has most, and is in UTF-8,
or in UTF-16 with its mark. Blank lines and spaces around fields are dropped. The columns of the path and of the label
have one of the usual names (PATHS, LABELS), in any case, or are named by the user. All lines that cannot be used are
reported at once.
"""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.errors import UserError
from ssamba.files import parse_json, read_bounded

log = logging.getLogger(__name__)

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "audio", "wav")
"""What the column of the recordings is called; the first that is there."""
LABELS = ("label", "labels", "class", "category")
"""What the column of the labels is called."""
SPLIT = "split"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What splits are called elsewhere, in small letters -> here."""
TABLES, JSONS = (".csv", ".tsv", ".txt"), (".json", ".jsonl")
JSON_SHAPE = '{"data": [{"wav": path, "labels": "label,label"}, ...]}'

_DELIMITERS = ",\t;|"
_MOST_BYTES = 1 << 30
_NAMED = 10  # lines that cannot be used, in a message
_MEASURE = re.compile("start|end|stop|onset|offset|duration|(start|end)_(time|seconds)")
_FEW = 3  # too few rows to judge whether a column has a value of its own in each

Labels = dict[str, str | list[str]]


@dataclass(frozen=True)
class Columns:
    """What the user says of a table's columns; None: they are known by the usual names."""

    path: str | None = None
    label: str | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table, column -> text without spaces around it."""

    line: int
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A recording that a list names.

    where: the list and the line. path: absolute. split: None where the list says none.
    """

    where: str
    path: Path
    labels: Labels
    split: str | None


class Offenders:
    """Lines that cannot be used, which are reported together."""

    def __init__(self, place: object, expected: str) -> None:
        self.place, self.expected = place, expected
        self.problems: list[str] = []

    def add(self, where: str, problem: str) -> None:
        self.problems.append(f"{where} {problem}")

    def check(self) -> None:
        """UserError if there are any."""
        if not self.problems:
            return
        if len(self.problems) == 1:
            raise UserError(f"{self.place} {self.problems[0]}; expected {self.expected}")
        shown = self.problems[:_NAMED]
        if len(self.problems) > _NAMED:
            shown.append(f"and {len(self.problems) - _NAMED} more")
        raise UserError(
            f"{self.place} has {len(self.problems)} entries that cannot be used; expected {self.expected}:", *shown
        )


def read_text(path: Path, expected: str) -> str:
    """A file's text, in UTF-8 or, with its mark, UTF-16.

    Raises:
        UserError: it cannot be read, or is no text; a page of HTML is reported as one.
    """
    content = read_bounded(path, expected, _MOST_BYTES)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}); expected {expected} in UTF-8") from error
    if text[:1000].lstrip().lower().startswith(("<!doctype", "<html", "<?xml")):
        raise UserError(f"{path} is a page of HTML or XML, perhaps a server's message; expected {expected}")
    if "\0" in text:
        raise UserError(f"{path} holds NUL characters, as no text does; expected {expected}")
    return text


def read_rows(
    path: Path, columns: Sequence[str] | None = None, delimiter: str | None = None, comments: bool = False
) -> tuple[list[str], list[Row]]:
    """The columns of a table and its lines.

    Args:
        columns: those of a table without a header, in their order.
        delimiter: between fields; None: the one that the first line has most of.
        comments: a line that begins with # is none of the table.

    Raises:
        UserError: no table, a column twice, lines of another length.
    """
    text = read_text(path, "a table of recordings, such as a CSV")
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(f"--delimiter is {delimiter}; expected one character")
    lines = text.splitlines()
    first = next((line for line in lines if line.strip() and not (comments and line.startswith("#"))), "")
    delimiter = delimiter or max(_DELIMITERS, key=first.count)
    # Spaces may stand behind a quoted field, too.
    tidy = re.sub(rf'" +(?=[\r\n{re.escape(delimiter)}]|$)', '"', text)
    try:
        reader = csv.reader(io.StringIO(tidy, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        table = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} cannot be read ({error}); expected a CSV") from error
    table = [(line, fields) for line, fields in table if any(fields) and not (comments and fields[0].startswith("#"))]
    names = list(columns) if columns else _without_empty_end(table.pop(0)[1]) if table else []
    if len(set(names)) < len(names):
        raise UserError(f"{path} has the columns {names}; expected each once")
    offenders = Offenders(path, f"{names}, separated by {delimiter!r}")
    rows = []
    for line, fields in table:
        fields = fields[: len(names)] + _without_empty_end(fields[len(names) :])
        if len(fields) != len(names):
            offenders.add(f"line {line}", f"is {_shown(fields)}")
        rows.append(Row(line, dict(zip(names, fields, strict=False))))
    offenders.check()
    return names, rows


def _without_empty_end(fields: list[str]) -> list[str]:
    """Without what separators at the end of a line make."""
    while fields and not fields[-1]:
        fields = fields[:-1]
    return fields


def _shown(value: object) -> str:
    return str(value)[:200]


def column(names: Sequence[str], chosen: str | None, usual: Sequence[str], option: str, place: Path) -> str | None:
    """The name that is meant: the user's, else the first of the usual ones; None: there is none of these.

    Raises:
        UserError: the user's is not there.
    """
    if chosen is not None:
        if chosen not in names:
            raise UserError(f"{option} is {chosen}; {place} has the columns {list(names)}")
        return chosen
    spelled = {name.lower(): name for name in reversed(names)}
    return next((spelled[name] for name in usual if name in spelled), None)


def read_list(path: Path, label: str | None, columns: Columns, separator: str | None = None) -> list[Entry]:
    """The recordings that a list names, each once.

    Labels: of a table the column of the labels, and each further column, under its name; of a JSON the labels alone.
    A row that says the same again is dropped. With `separator` a recording has several labels, in one field or in
    several rows.

    Args:
        label: the key that the labels go under; None: none is read.
        columns: the user's names of a table's columns or of a JSON's fields.
        separator: between the labels in a field.

    Raises:
        UserError: it is no list, or has entries that cannot be used, all of them named.
    """
    if path.suffix.lower() in JSONS:
        entries = list(_json_entries(path, label, columns, separator))
    elif path.suffix.lower() in TABLES:
        entries = list(_table_entries(path, label, columns, separator))
    else:
        raise UserError(f"{path} is no list; expected a file that ends in {', '.join((*TABLES, *JSONS))}")
    return _each_once(path, entries, label, separator is not None)


def _table_entries(path: Path, label: str | None, columns: Columns, separator: str | None) -> Iterator[Entry]:
    names, rows = read_rows(path, delimiter=columns.delimiter)
    paths = column(names, columns.path, PATHS, "--path-column", path)
    labels = column(names, columns.label or (label if label in names else None), LABELS, "--label-column", path)
    if paths is None or (separator and labels is None):
        wanted = "a path (--path-column)" + (" and a label (--label-column)" if separator else "")
        raise UserError(f"{path} has the columns {names}; expected one for {wanted} among them")
    split = column(names, None, (SPLIT,), "", path)
    further = [name for name in names if label and name not in (paths, labels, split)]
    # A spreadsheet's or a data frame's own numbers of the rows, and other names of the recordings, are no labels.
    unused = [name for name in further if not name or name.startswith("Unnamed:") or name.lower() in PATHS]
    further = [name for name in further if name not in unused]
    if unused:
        log.warning("%s: the columns %s are no labels and are not used", path, unused)
    for name in further:
        if name.lower() in LABELS:
            log.warning(
                "%s: %s is taken for the labels, and %s as a further label (--label-column)", path, labels, name
            )
    _warn_unlike_labels(path, rows, further)
    offenders = Offenders(path, "a path in each" + (", and a label" if label and labels else ""))
    for row in rows:
        where, fields = f"line {row.line}", dict(row.fields)
        wav, name = fields.pop(paths), fields.pop(labels, "") if labels else ""
        part = fields.pop(split) if split else None
        if not wav or (label and labels and not name) or part == "":
            offenders.add(where, f"is {_shown(list(row.fields.values()))}")
            continue
        entry_labels: Labels = {key: fields[key] for key in further if fields[key]}
        if label and name:
            entry_labels[label] = _split_names(name, separator) if separator else name
        yield Entry(f"{path} {where}", locate(path, wav), entry_labels, part)
    offenders.check()


def _split_names(text: str, separator: str) -> list[str]:
    """Labels in one field, without spaces around them and without what a separator at the end makes."""
    names = [name.strip() for name in text.split(separator)]
    return list(dict.fromkeys(name for name in names if name)) or [""]


def _warn_unlike_labels(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Columns that become labels and cannot be meant as such: durations, numbers of a speaker's utterance."""
    for name in names:
        if _MEASURE.fullmatch(name.lower()):
            log.warning("%s: the column %s is taken as a label; recordings are taken whole", path, name)
            continue
        values = [row.fields.get(name, "") for row in rows]
        if len(values) > _FEW and len(set(values)) == len(values):
            log.warning("%s: the column %s has another value in each row: as a label it tells nothing", path, name)


def _json_entries(path: Path, label: str | None, columns: Columns, separator: str | None) -> Iterator[Entry]:
    offenders = Offenders(path, '{"wav": path, "labels": "label,label"} in each, neither of them empty')
    for where, entry in _json_objects(path):
        names = list(entry) if isinstance(entry, dict) else []
        paths = column(names, columns.path if columns.path in names else None, PATHS, "--path-column", path)
        asked = columns.label or (label if label in names else None)
        labels = column(names, asked if asked in names else None, LABELS, "--label-column", path)
        wav = entry[paths] if paths else None
        entry_labels = _json_labels(entry[labels], labels, separator) if label and labels else []
        if not isinstance(wav, str) or not wav.strip() or entry_labels is None or (label and not entry_labels):
            offenders.add(where, f"is {_shown(json.dumps(entry))}")
            continue
        part = entry.get(SPLIT)
        known: Labels = {label: entry_labels} if label and entry_labels else {}
        yield Entry(f"{path} {where}", locate(path, wav.strip()), known, part if isinstance(part, str) else None)
    offenders.check()


def _json_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The position in the list, and the entry there: in {"data": [...]}, in a list, by its name, or line by line."""
    text = read_text(path, f"a list of recordings: {JSON_SHAPE}")
    if path.suffix.lower() == ".jsonl":
        for line, part in enumerate(text.splitlines(), 1):
            if part.strip():
                yield f"line {line}", parse_json(part.encode(), Any, f"{path} line {line}", "an object")
        return
    content: Any = parse_json(text.encode(), Any, path, JSON_SHAPE)
    data = content.get("data") if isinstance(content, dict) else content
    if isinstance(data, list):
        yield from ((f"data[{index}]", entry) for index, entry in enumerate(data))
    elif (
        isinstance(content, dict)
        and content
        and all(isinstance(entry, dict) and column(list(entry), None, PATHS, "", path) for entry in content.values())
    ):
        yield from ((repr(name), entry) for name, entry in content.items())
    else:
        kind = f"an object with the keys {list(content)[:5]}" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is {kind}; expected {JSON_SHAPE}")


def _json_labels(value: Any, name: str, separator: str | None) -> list[str] | str | None:
    """A label or several; None if it is none. In `labels`, as the repositories of AST, SSAST and SSAMBA have it, commas
    stand between several."""
    if isinstance(value, bool) or not isinstance(value, str | int | list):
        return None
    if isinstance(value, list):
        named = [str(one).strip() if isinstance(one, str | int) and not isinstance(one, bool) else "" for one in value]
        return list(dict.fromkeys(named)) if named and all(named) else None
    text = str(value).strip()
    between = separator or ("," if name.lower() == "labels" and isinstance(value, str) else None)
    if between is None:
        return text or None
    names = [one.strip() for one in text.split(between)]
    return list(dict.fromkeys(names)) if text else None


def locate(path: Path, written: str) -> Path:
    """The path of a recording of a list: relative to the list, or absolute, ~ as home; with the separators of Windows,
    if it is not there as it is written."""
    place = Path(os.path.abspath(path.parent / os.path.expanduser(written)))
    if "\\" in written and not place.exists():
        other = Path(os.path.abspath(path.parent / written.replace("\\", "/")))
        return other if other.exists() or "/" not in written else place
    return place


def _each_once(path: Path, entries: Sequence[Entry], label: str | None, multi_label: bool) -> list[Entry]:
    """Rows that say the same again are dropped; those that say more of the same recording are joined or complained of.

    Raises:
        UserError: a recording with other labels or in another split than before.
    """
    kept: dict[Path, Entry] = {}
    again = 0
    offenders = Offenders(path, "each recording once, or --separator if it may have several labels")
    for entry in entries:
        first = kept.setdefault(entry.path, entry)
        if first is entry:
            continue
        if (first.labels, first.split) == (entry.labels, entry.split):
            again += 1
            continue
        rest = [{key: value for key, value in one.labels.items() if key != label} for one in (first, entry)]
        if multi_label and label and rest[0] == rest[1] and first.split == entry.split:
            names = [*first.labels.get(label, []), *entry.labels.get(label, [])]
            kept[entry.path] = Entry(
                first.where, first.path, {**first.labels, label: list(dict.fromkeys(names))}, first.split
            )
            continue
        where, before = (one.where.removeprefix(f"{path} ") for one in (entry, first))
        shown = [_shown([one.labels, *([one.split] if one.split else [])])[1:-1] for one in (entry, first)]
        offenders.add(where, f"has {entry.path} with {shown[0]}, and {before} has it with {shown[1]}")
    offenders.check()
    if again:
        log.warning("%s: %d rows say the same of a recording as one before them, and are dropped", path, again)
    return list(kept.values())


def split_names(names: Sequence[str]) -> dict[str, str]:
    """What splits are called in a data set -> what they are called here.

    Raises:
        UserError: two names of one split.
    """
    known: dict[str, str] = {}
    for name in names:
        split = SPLITS.get(name.lower(), name)
        if split in known.values():
            other = next(first for first, called in known.items() if called == split)
            raise UserError(f"{other} and {name} are both names of the split {split}; expected one: rename the other")
        known[name] = split
    return known
