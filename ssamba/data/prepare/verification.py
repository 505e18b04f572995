"""Shards compared with their index, in full. Imports no torch."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssamba.data.shards.descriptions import as_list, parse_description
from ssamba.data.shards.index import INDEX_NAME, SAMPLES_NAME, Samples, Shard, ShardSet
from ssamba.errors import BadAudio, UserError
from ssamba.jobs import processes, run_jobs
from ssamba.progress import progress_bar
from ssamba.recordings import decoded_length


def _in_place(shard: Shard) -> Path:
    return shard.path


def verify_shards(
    shard_set: ShardSet, progress: bool = True, local: Callable[[Shard], Path] = _in_place, workers: int = 1
) -> list[str]:
    """Read every shard again and compare it with its index; an empty list is a clean set.

    Checks the sha256, and that each sample is where the table says, with audio of the set's rate and of that length,
    which is decoded, and a JSON that describes it, if it has one, with names that its index lists. A shard that cannot
    be read at all is a problem in the list as well, not an exception. A sample at a time is in memory.

    Args:
        shard_set: what to read; of its tables `find_shards` has compared the sha256.
        progress: show a bar over the samples.
        local: where a shard can be read, such as `ShardCache.local`; called in the processes that read.
        workers: processes.
    """
    ends = np.cumsum([shard.info.samples for shard in shard_set.shards])
    tables = np.split(shard_set.table, ends[:-1])
    checks = [
        _Check(shard, table, shard_set.sampling_rate, local, shard_set.names_in(shard))
        for shard, table in zip(shard_set.shards, tables, strict=True)
    ]
    descriptions = {shard.descriptions.path: shard.descriptions for shard in shard_set.shards if shard.descriptions}
    checks += [
        _Check(described, shard_set.table[:0], shard_set.sampling_rate, local, {})
        for described in descriptions.values()
    ]  # of the file as a whole
    problems: dict[Path, list[str]] = {}
    with (
        progress_bar(shard_set.samples, "sample", "verify", disable=not progress) as bar,
        processes(workers) as executor,
        closing(run_jobs(_problems, checks, executor)) as results,
    ):
        for check, messages in results:
            problems[check.shard.path] = [f"{check.shard.place}: {problem}" for problem in messages]
            bar.update(check.shard.info.samples)
    return [problem for check in checks for problem in problems[check.shard.path]]


@dataclass(frozen=True)
class _Check:
    """A shard to verify."""

    shard: Shard
    table: Samples
    sampling_rate: int
    local: Callable[[Shard], Path]
    labels: Mapping[str, frozenset[str]]
    """Label key -> the names that its index lists."""


def _problems(check: _Check) -> list[str]:
    try:
        with ExitStack() as stack:
            file = stack.enter_context(check.local(check.shard).open("rb"))
            described = check.shard.descriptions
            descriptions = stack.enter_context(check.local(described).open("rb")) if described else file
            return list(_shard_problems(check, file, descriptions))
    except (OSError, UserError) as error:
        return [f"it cannot be read: {error}"]


def _shard_problems(check: _Check, file: io.BufferedReader, descriptions: io.BufferedReader) -> Iterator[str]:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != check.shard.info.sha256:
        yield f"its sha256 is {digest}; the index expects {check.shard.info.sha256}"
    for index, row in enumerate(check.table):
        name = f"sample {index}"
        if row["json_bytes"]:
            try:
                description = parse_description(_part(descriptions, row, "json"), name)
                name = f"sample {description['key']!r}" if description["key"] != name else name
                for key, names in check.labels.items():
                    if not names:  # transcripts have no list
                        continue
                    if unknown := [one for one in as_list(description["labels"].get(key)) if one not in names]:
                        yield f"{name}: its label {key!r} is {unknown[0]!r}, which {INDEX_NAME} does not list"
            except BadAudio as error:
                yield f"{name}: {error}"
        for problem in _audio_problems(_part(file, row, "audio"), int(row["length"]), check.sampling_rate):
            yield f"{name}: {problem}"


def _part(file: io.BufferedReader, row: np.void, part: str) -> bytes:
    file.seek(int(row[part]))
    return file.read(int(row[f"{part}_bytes"]))


def _audio_problems(content: bytes, length: int, sampling_rate: int) -> Iterator[str]:
    try:
        rate, samples = decoded_length(content)
    except BadAudio as error:
        yield f"its audio cannot be used: {error}"
        return
    if rate != sampling_rate:
        yield f"its audio is of {rate} Hz; expected {sampling_rate} Hz"
    if samples != length:
        yield f"its audio has {samples} samples; {SAMPLES_NAME} expects {length}"
