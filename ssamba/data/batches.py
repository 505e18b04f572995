"""What follows the decoding of clips, whatever their source: a user's stages, and batches.

A clip is a sample as webdataset's filters take it:

- `__key__`: the names of the recordings in it, joined by +; `__url__`: the shard of the first one.
- `__place__`: where it stands in the order of training, an int: the same clip has the same place, whatever ranks and
  workers there are. Random augmentation is seeded by it, so that a resumed run gets the same clips.
- `waveform`: float32 (S,), zeros after its end; `length`: valid samples, an int.
- `teacher_features`, where they are read: float16 (P, D), a teacher's features of the clip at the times of a student's
  patches.
- `label`, where labels are read: a class's index, float32 (C,) of several classes or of a mixture, or int64 (N,) of
  hops or characters.
- the members of its sample that were asked for, in bytes, under their extensions; None where a sample lacks one, and of
  clips that are joined of several recordings a list of them.

Shapes: B batch, S samples, C classes.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NotRequired, TypedDict, cast

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from torch import Tensor

from ssamba.data.labels import Labels
from ssamba.errors import UserError

log = logging.getLogger(__name__)

Sample = dict[str, Any]
"""A sample as webdataset's filters take it."""
Stage = Callable[[Iterator[Sample]], Iterable[Sample]]
"""A filter of webdataset, such as wds.map(f), or a function from samples to samples."""

_JUDGED_AFTER = 200  # recordings read before the share of bad ones can end a run
_MOST_WAITING = 1000  # clips that a stage takes before one comes out of it
FEATURES: Final = "teacher_features"
"""The key of a teacher's features of a clip."""
_OWN = frozenset({"waveform", "length", "label"})


class Batch(TypedDict):
    """waveform: float32 (B, S), zeros after the end; lengths: int64 (B,), valid samples; labels: int64 (B,) for one
    label a clip, float32 (B, C) for several and for clips that may be mixed, int64 (B, N) for one a hop or character,
    `NO_LABEL` after a clip's last, empty without labels; keys: the clips' names; positions: their places in the order,
    the same whatever the ranks; consumed: clips of the order that are consumed once every rank has had this batch;
    skipped: names and reasons of bad recordings met since the batch before; taken, ended: of shards without an index,
    what `Progress.add` counts; teacher_features: float16 (B, P, D), where they are read. What else clips have, from
    their samples or from stages, stands under its own name: numbers and arrays of one shape as one array, tensors as
    one tensor (B, ...), anything else as a list."""

    waveform: Tensor
    lengths: Tensor
    labels: Tensor
    keys: list[str]
    positions: list[int]
    consumed: int
    skipped: list[str]
    teacher_features: NotRequired[Tensor]
    taken: NotRequired[list[list[int]]]
    ended: NotRequired[list[list[int]]]


@dataclass(eq=False)
class Tally:
    """How many recordings an iteration has read, and which of them were bad.

    max_bad_fraction: of those read that may be. enough: recordings after which their share is judged, if that is fewer
    than usual: all that there are.
    """

    max_bad_fraction: float
    enough: int = _JUDGED_AFTER
    read: int = 0
    bad: int = 0
    last: str = ""
    skipped: list[str] = field(default_factory=list)

    def reject(self, problem: str) -> None:
        """Count a bad recording, and log it."""
        self.bad += 1
        self.last = problem
        self.skipped.append(problem)
        log.warning("skipped %s", problem)

    def judge(self) -> None:
        """UserError if too many are bad."""
        # A small set is judged once it may all have been read.
        judged = self.read >= min(_JUDGED_AFTER, self.enough)
        if self.bad and judged and self.bad > self.max_bad_fraction * self.read:
            raise UserError(
                f"{self.bad} of {self.read} recordings are bad, more than data.max_bad_fraction "
                f"{self.max_bad_fraction:g} allows; the last: {self.last}"
            )

    def take_skipped(self) -> list[str]:
        """Those that were skipped since the last call."""
        skipped, self.skipped = self.skipped, []
        return skipped


@dataclass(eq=False)
class Rows:
    """A batch that is being filled: its clips' waveforms (B, S), which each clip fills in place, and its metadata.

    shared: other ranks have a batch at the same time, and would wait for this one.
    """

    waveform: Tensor
    consumed: int
    tally: Tally
    shared: bool = False


@dataclass(eq=False, slots=True)
class Row:
    """A clip's place in a batch."""

    rows: Rows
    index: int
    waveform: Tensor


def this_worker() -> tuple[int, int]:
    """The index of the loader's worker that this process is, and how many there are."""
    worker = torch.utils.data.get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


class InPlace(wds.PipelineStage):  # type: ignore[misc]
    """A user's stages, which must yield each clip once, in order: so the order, and the place from which a run resumes,
    are those without them. They may look ahead. Clips that cannot be used bypass them.

    Raises:
        UserError: a clip is missing, is there twice, comes out of its turn or without its `__place__`.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def run(self, clips: Iterator[Sample]) -> Iterator[Sample]:
        waiting: deque[Sample] = deque()

        def entered() -> Iterator[Sample]:
            for clip in clips:
                waiting.append({**clip})
                if len(waiting) > _MOST_WAITING:
                    raise _misplaced(None, waiting[0])
                if clip["waveform"] is not None:
                    yield clip

        for clip in wds.DataPipeline(entered, *self.stages):
            yield from _unusable(waiting)
            expected = waiting.popleft() if waiting else None
            if expected is None or not isinstance(clip, dict) or clip.get("__place__") != expected["__place__"]:
                raise _misplaced(clip, expected)
            clip["__row__"] = expected["__row__"]
            yield clip
        yield from _unusable(waiting)
        if waiting:
            raise _misplaced(None, waiting[0])


def _unusable(waiting: deque[Sample]) -> Iterator[Sample]:
    while waiting and waiting[0]["waveform"] is None:
        yield waiting.popleft()


def _misplaced(clip: object, expected: Mapping[str, Any] | None) -> UserError:
    def shown(one: Any) -> str:
        named = isinstance(one, Mapping) and "__place__" in one
        return f"{one.get('__key__')} (place {one['__place__']})" if named else "what has no __place__"

    wanted = f"{shown(expected)} was expected" if expected else "none was expected any more"
    came = "nothing" if clip is None else shown(clip)
    return UserError(
        f"a stage behind the clips gave {came} where {wanted}: it drops, adds or reorders clips, and would change the "
        "order of training. Expected one clip out for each clip in, with all that it came with"
    )


def collated(clips: Iterable[Sample], labels: Labels | None) -> Iterator[Batch]:
    """The stage that makes batches of clips, each of those of one `Rows`, as soon as its last clip is there.

    wds.batched makes batches of one size alone, and holds each back until the next clip is decoded.
    """
    pending: list[Sample] = []
    for clip in clips:
        pending.append(clip)
        rows = clip["__row__"].rows
        if len(pending) == len(rows.waveform):
            usable = [one for one in pending if one["waveform"] is not None]
            pending = []
            if usable:
                yield batched(rows, usable, labels)
            elif rows.shared:
                raise UserError(
                    f"no clip of a validation batch can be used, and the other devices would wait for it; the last: "
                    f"{rows.tally.last}"
                )


def batched(rows: Rows, clips: Sequence[Sample], labels: Labels | None) -> Batch:
    """A batch of those of its clips that can be used."""
    for clip in clips:
        _put(clip)
    waveform = rows.waveform
    if len(clips) < len(waveform):
        waveform = waveform[[clip["__row__"].index for clip in clips]]
    batch = {
        "waveform": waveform,
        "lengths": torch.tensor([clip["length"] for clip in clips]),
        "labels": labels.stack([clip["label"] for clip in clips]) if labels else torch.empty(0),
        "keys": [clip["__key__"] for clip in clips],
        "positions": [clip["__place__"] for clip in clips],
        "consumed": rows.consumed,
        "skipped": rows.tally.take_skipped(),
    }
    for name in clips[0]:
        if name not in _OWN and not name.startswith("__"):
            batch[name] = _combined([clip.get(name) for clip in clips])
    return cast(Batch, batch)


def _put(clip: Sample) -> None:
    """Copy the waveform that a stage has put into a clip into the clip's row."""
    row, waveform = clip["__row__"], clip["waveform"]
    if waveform is row.waveform:
        return
    waveform = torch.as_tensor(waveform)
    if waveform.shape != row.waveform.shape:
        raise UserError(
            f"a stage gave {clip['__key__']} a waveform of shape {tuple(waveform.shape)}; expected "
            f"{tuple(row.waveform.shape)}, as it came, and valid samples in `length`"
        )
    row.waveform.copy_(waveform)


def _combined(values: list[Any]) -> Any:
    """One array or tensor of values of one shape; the values where they are something else."""
    first = values[0]
    if isinstance(first, Tensor | np.ndarray):
        alike = all(type(one) is type(first) and one.shape == first.shape for one in values)
    else:
        alike = all(isinstance(one, int | float) for one in values)
    return wds.filters.combine_values(values) if alike else values
