"""The points of `ssamba bench efficiency`, one after another, kept in a folder as they come."""

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssamba.errors import UserError
from ssamba.evaluation.efficiency_points import Limits, Measured, Point, measure_apart
from ssamba.files import read_json, write_json
from ssamba.progress import print_above, progress_bar

RESULTS = "results.json"
REPORT = "results.md"
PICTURES = "efficiency-*.png"


@dataclass(frozen=True)
class EfficiencySettings:
    """What is measured: every combination, as `Point` has them; where, and within which limits."""

    encoders: Sequence[str]
    sizes: Sequence[str]
    passes: Sequence[str]
    batches: Sequence[int]
    tokens: Sequence[int]
    device: str
    threads: int
    rounds: int
    limits: Limits

    def points(self) -> list[Point]:
        """From few tokens to many: an interrupted series has comparisons, and a failure predicts that larger points
        fail."""
        ordered = itertools.product(
            sorted(set(self.tokens)),
            sorted(set(self.batches)),
            dict.fromkeys(self.sizes),
            dict.fromkeys(self.passes),
            dict.fromkeys(self.encoders),
        )
        return [Point(encoder, size, passes, batch, tokens) for tokens, batch, size, passes, encoder in ordered]


@dataclass(frozen=True)
class Record:
    """results.json: the machine and what else all points have in common, and the points in the order in which they
    were measured."""

    setup: dict[str, Any]
    points: list[Measured]

    def write(self, out: Path, **more: Any) -> None:
        write_json(out / RESULTS, {"setup": self.setup, "points": list(map(asdict, self.points)), **more})


def open_record(out: Path, setup: Mapping[str, Any], overwrite: bool) -> Record:
    """What is in a folder already, or nothing of an empty one.

    Raises:
        UserError: the folder holds something else, or points of another machine, device, number of threads or version.
    """
    names = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    ours = RESULTS in names
    if names and not ours:
        raise UserError(f"{out} holds no {RESULTS}; expected a new folder, or one of `ssamba bench efficiency`")
    if overwrite:
        for path in (out / RESULTS, out / REPORT, *out.glob(PICTURES)):
            path.unlink(missing_ok=True)
    elif ours:
        record = read_json(out / RESULTS, Record, "what `ssamba bench efficiency` writes; --overwrite begins anew")
        values = {name: (value, record.setup.get(name)) for name, value in setup.items()}
        if other := [f"{name} {there} (here {here})" for name, (here, there) in values.items() if here != there]:
            raise UserError(
                f"{out} holds points of {', '.join(other)}; expected another --out, or --overwrite to begin anew"
            )
        return record
    return Record(dict(setup), [])


def measure_points(settings: EfficiencySettings, out: Path, record: Record) -> Record:
    """Measure what the record does not have yet; each point is written when it is there."""
    kept = {one.point: one for one in record.points}
    points = settings.points()
    missing = [point for point in points if not (point in kept and kept[point].stands(settings.limits))]
    with progress_bar(len(points), "point", "efficiency", initial=len(points) - len(missing)) as bar:
        for point in missing:
            measured = _implied(point, kept.values(), settings.limits) or measure_apart(
                point, settings.device, settings.threads, settings.rounds, settings.limits
            )
            print_above(f"{point}: {_outcome(measured)}", sys.stderr)
            kept.pop(point, None)
            kept[point] = measured
            Record(record.setup, list(kept.values())).write(out)
            bar.update()
    return Record(record.setup, list(kept.values()))


def _implied(point: Point, kept: Iterable[Measured], limits: Limits) -> Measured | None:
    """The prediction for this point by a smaller one, if that did not end within these limits either."""
    for one in kept:
        smaller = one.batch <= point.batch and one.tokens <= point.tokens
        alike = (one.encoder, one.size, one.passes) == point[:3] and one.status in ("out of memory", "out of time")
        if alike and smaller and one.stands(limits):
            because = f"as batch {one.batch}, {one.tokens:,} tokens"
            return replace(one, batch=point.batch, tokens=point.tokens, because=because)
    return None


def _outcome(measured: Measured) -> str:
    if measured.status != "done":
        return f"{measured.status} ({measured.because})"
    taken = "" if measured.bytes is None else f", {measured.bytes / 2**20:,.0f} MiB"
    return f"{min(measured.seconds):.3g} to {max(measured.seconds):.3g} s{taken}"
