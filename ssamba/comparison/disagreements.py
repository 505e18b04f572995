"""Examples that one group of runs gets right and another wrong, the surest first, and how they sound.

Shapes: N examples, C classes, T frames, M mel bins.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from ssamba.audio import LogMel, samples_for
from ssamba.comparison.compare import Comparison, Group
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.evaluation.hops import recording_of
from ssamba.evaluation.scores import TEXTS_NAME, probabilities
from ssamba.progress import progress_bar
from ssamba.recordings import read_segment

PAIRS = 3
"""Of groups, the best one and others."""
EACH = 4
"""Examples of a pair in either direction."""
_MOST_SAMPLES = 100_000  # of test shards, whose names are read one by one
_MOST_SECONDS = 10.0  # of a recording that can be played
_MOST_BYTES = 12 << 20  # of all the FLACs on the page
_QUIETEST = 1e-5  # of full scale


class Disagreement(NamedTuple):
    """An example by its key, its true labels, the wrong prediction, and how certain both groups are: the product of the
    one's probability of the true label and the other's of the wrong one."""

    key: str
    true: str
    wrong: str
    certainty: float


@dataclass(frozen=True)
class _Answers:
    """Of a group: keys sorted, true labels int64 (N,) or float (N, C), probabilities (N, C), means over its seeds."""

    keys: list[str]
    labels: Tensor
    chances: Tensor
    names: list[str]


def shown_pairs(comparison: Comparison) -> list[tuple[Group, Group]]:
    """The best group with those that differ most from it."""
    best, *others = [group for group in comparison.ranked if group.draws is not None] or [comparison.best]
    same = [group for group in others if group.digests == best.digests]
    return [(best, other) for other in same[::-1][:PAIRS]]


def disagreements(first: Group, second: Group) -> list[Disagreement]:
    """Examples that `first` gets right and `second` wrong, the surest first, at most `EACH`."""
    if first.runs[0].metric == "CER":
        return _texts(first, second)
    ours, theirs = _answers(first), _answers(second)
    labels, names = ours.labels, ours.names
    if labels.ndim == 2:  # for each example the class on which they disagree most
        sure, wrong = 1 - (ours.chances - labels).abs(), (theirs.chances - labels).abs()
        certainty, predicted = torch.where((sure > 0.5) & (wrong > 0.5), sure * wrong, 0.0).max(1)
    else:
        rows = torch.arange(len(labels))
        predicted, right = theirs.chances.argmax(1), ours.chances.argmax(1) == labels
        certainty = ours.chances[rows, labels] * theirs.chances[rows, predicted] * (right & (predicted != labels))
    examples = []
    for place in certainty.argsort(descending=True, stable=True)[:EACH].tolist():
        if certainty[place] <= 0:
            break
        name = names[int(predicted[place])]
        if labels.ndim == 2:
            true = "|".join(names[one] for one in torch.nonzero(labels[place]).flatten().tolist())
            wrong_text = f"{'missed' if labels[place, predicted[place]] else 'said'} {name}"
        else:
            true, wrong_text = names[int(labels[place])], f"said {name}"
        examples.append(Disagreement(ours.keys[place], true, wrong_text, float(certainty[place])))
    return examples


def _answers(group: Group) -> _Answers:
    """Of all folds; each example's answer is the mean of its runs'."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    names: list[str] = []
    for run in group.runs:
        predictions, names = run.predictions()
        for key, label, chances in zip(predictions.keys, predictions.labels, probabilities(predictions), strict=True):
            _, before, count = sums.get(key, (label, torch.zeros(len(names), dtype=torch.float64), 0))
            sums[key] = label, before + chances, count + 1
    keys = sorted(sums)
    chances = torch.stack([sums[key][1] / sums[key][2] for key in keys])
    return _Answers(keys, torch.stack([sums[key][0] for key in keys]), chances, names)


def _texts(first: Group, second: Group) -> list[Disagreement]:
    """Of transcripts, by the first run of each group: the examples in which the second makes more errors than the
    first."""
    ours, theirs = (_written(group) for group in (first, second))
    examples = []
    for key in sorted(ours.keys() & theirs.keys()):
        true, _, right = ours[key]
        _, wrong, mistakes = theirs[key]
        if mistakes > right:
            examples.append(
                Disagreement(key, true, f"said {wrong or 'nothing'}", (mistakes - right) / max(1, len(true)))
            )
    return sorted(examples, key=lambda one: -one.certainty)[:EACH]


def _written(group: Group) -> dict[str, tuple[str, str, float]]:
    folder = group.runs[0].folder
    assert folder is not None
    with (folder / "test" / TEXTS_NAME).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["key"]: (row["true"], row["greedy"], float(row["greedy edits"])) for row in rows}


class Sound(NamedTuple):
    """The sound of an example: seconds, its spectrogram (T, M) in natural logarithms, and a FLAC of it."""

    seconds: float
    spectrogram: Tensor
    flac: bytes


def find_sounds(group: Group, keys: Sequence[str]) -> tuple[dict[str, Sound], str]:
    """The beginnings of examples, from the test shards of a group's runs, as many as there is room for; and in a
    sentence why some, or all, are missing."""
    run = group.runs[0]
    recordings = {key: recording_of(key) if run.recipe["task.hop_ms"] is not None else key for key in keys}
    try:
        shards = _test_shards(run.recipe, run.record)
        reader = SampleReader(shards, ShardCache(0))
        rows = _rows(reader, shards.samples, set(recordings.values()))
        return _read(reader, rows, recordings, run.recipe)
    except (UserError, BadAudio) as error:
        return {}, f"The recordings cannot be heard here: {error}."


def _test_shards(recipe: Mapping[str, Any], record: Mapping[str, Any]) -> ShardSet:
    split = "train" if recipe["data.fold_by"] else "test"
    shards = find_shards(recipe[f"data.{split}"], recipe["data.cache"])
    if shards.fingerprint != record.get("data", {}).get(split, {}).get("fingerprint"):
        raise UserError(f"data.{split} holds other shards than the run had")
    if any(shard.url is not None for shard in shards.shards):
        raise UserError(f"data.{split} lies elsewhere, and nothing is fetched for a page")
    if shards.samples > _MOST_SAMPLES:
        raise UserError(f"data.{split} has {shards.samples} samples, too many to look for some by their names")
    return shards


def _rows(reader: SampleReader, samples: int, wanted: set[str]) -> dict[str, int]:
    rows: dict[str, int] = {}
    with progress_bar(samples, "sample", "names") as bar:
        for row in range(samples):
            bar.update()
            try:
                key = reader.description(row)["key"]
            except BadAudio:
                continue
            if key in wanted:
                rows.setdefault(key, row)
    return rows


def _read(
    reader: SampleReader, rows: Mapping[str, int], recordings: Mapping[str, str], recipe: Mapping[str, Any]
) -> tuple[dict[str, Sound], str]:
    rate = recipe["audio.sampling_rate"]
    log_mel = LogMel(rate, recipe["audio.num_mel_bins"], 0.0, 0.5)
    longest = min(samples_for(recipe["audio.max_length"], rate), round(_MOST_SECONDS * rate))
    sounds: dict[str, Sound] = {}
    room = _MOST_BYTES
    for key, name in recordings.items():
        if name not in rows:
            continue
        row = rows[name]
        waveform = np.zeros(min(longest, int(reader.table[row]["length"])), np.float32)
        read_segment(reader.audio(row), rate, 0, waveform)
        waveform *= np.float32(reader.description(row).get("full_scale", 1))
        flac = _flac(waveform, rate)
        if len(waveform) < log_mel.frame or len(flac) > room:
            continue
        room -= len(flac)
        spectrogram = log_mel(torch.from_numpy(waveform).unsqueeze(0), torch.tensor([len(waveform)]))[0]
        sounds[key] = Sound(len(waveform) / rate, spectrogram, flac)
    missing = len(recordings) - len(sounds)
    return (
        sounds,
        f"{missing} of {len(recordings)} are not heard, for want of room or of the recording." if missing else "",
    )


def _flac(waveform: np.ndarray[Any, Any], rate: int) -> bytes:
    """A FLAC of 16 bits, normalised to full scale: listeners judge the content, not the level."""
    file = io.BytesIO()
    peak = max(float(np.abs(waveform).max()), _QUIETEST)
    soundfile.write(file, waveform * np.float32(0.99 / peak), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
