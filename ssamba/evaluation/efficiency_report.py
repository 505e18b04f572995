"""The report of `ssamba bench efficiency`: tables, exponents, crossings and pictures."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssamba.evaluation.efficiency_growth import Crossing, Growth, Series, crossing, growth
from ssamba.evaluation.efficiency_points import KINDS, PASSES, PLAIN, Measured
from ssamba.evaluation.efficiency_runs import REPORT, Record
from ssamba.evaluation.pictures import Curve, draw_growth
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_text
from ssamba.printable import markdown_code

QUANTITIES = ("seconds", "bytes")
_OURS = "ssamba"
_ENDS = {"x": "out of memory", "+": "out of time"}

PUBLISHED_TOKENS = (5_000, 10_000, 15_000, 20_000, 25_000, 37_500, 50_000, 62_500, 74_000)
PUBLISHED_POINTS: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("ssamba", "tiny"): (
        (0.10, 0.19, 0.28, 0.36, 0.45, 0.72, 0.93, 1.17, 1.36),
        (550, 980, 1490, 1940, 2390, 3530, 4640, 5770, 6830),
    ),
    ("ssamba", "small"): (
        (0.21, 0.40, 0.58, 0.80, 1.00, 1.43, 1.91, 2.39, 2.84),
        (1080, 1880, 2770, 3650, 4540, 6750, 8950, 11160, 13210),
    ),
    ("ssamba", "base"): (
        (0.49, 0.95, 1.41, 1.87, 2.35, 3.51, 4.73),
        (2130, 3870, 5620, 7360, 9090, 13460, 17820, 22180, 26200),
    ),
    (PLAIN, "tiny"): ((0.25, 0.98, 2.23, 4.37), (2570, 9410, 20970, 37090)),
    (PLAIN, "small"): ((0.47, 1.97, 4.79), (4840, 18740, 41690)),
    (PLAIN, "base"): ((1.01, 4.17), (9820, 37630)),
}
"""(encoder, size) -> s and MiB at `PUBLISHED_TOKENS`, as far as they go: forward, batch 4."""
PUBLISHED = (
    "Stars are SSAMBA's authors' own, forward with a batch of 4 on their GPU, memory with weights: read off the "
    "pictures in their repository (github.com/SiavashShams/ssamba, figures/inference_time_b4.png and "
    "gpu_memory_b4.png), to about 0.01 s and 40 MiB. Another machine and another batch: their slopes can be compared, "
    "not their height."
)


class Case(NamedTuple):
    """What is compared in one table and one picture."""

    batch: int
    size: str

    def __str__(self) -> str:
        return f"{self.size}, batch {self.batch}"


def series_of(points: Sequence[Measured], case: Case, encoder: str, passes: str, quantity: str) -> Series:
    """What was measured of one of `QUANTITIES`, by the tokens; memory that the system does not report is left out."""
    series: dict[int, Sequence[float]] = {}
    for one in sorted(_of(points, case), key=lambda one: one.tokens):
        if (one.encoder, one.passes, one.status) == (encoder, passes, "done"):
            values = one.seconds if quantity == "seconds" else [float(one.bytes or 0)]
            if min(values) > 0:
                series[one.tokens] = values
    return series


def _of(points: Sequence[Measured], case: Case) -> list[Measured]:
    return [one for one in points if (one.batch, one.size) == case]


def _cases(points: Sequence[Measured]) -> list[Case]:
    sizes = list(dict.fromkeys(one.size for one in points))
    cases = {Case(one.batch, one.size) for one in points}
    return sorted(cases, key=lambda case: (case.batch, sizes.index(case.size)))


def _among(names: Sequence[str], points: Sequence[Measured], field: str) -> list[str]:
    """Those of the names that some points have, in the names' order."""
    there = {getattr(one, field) for one in points}
    return [name for name in names if name in there]


class Grown(NamedTuple):
    """A series' name, and how its values grow."""

    case: Case
    encoder: str
    passes: str
    quantity: str
    growth: Growth


class Crossed(NamedTuple):
    """From how many tokens `_OURS` is faster than another encoder."""

    case: Case
    passes: str
    than: str
    crossing: Crossing


def growths(points: Sequence[Measured]) -> list[Grown]:
    results = []
    for case in _cases(points):
        own = _of(points, case)
        for encoder in _among(KINDS, own, "encoder"):
            for passes in _among(PASSES, own, "passes"):
                for quantity in QUANTITIES:
                    if grown := growth(series_of(own, case, encoder, passes, quantity)):
                        results.append(Grown(case, encoder, passes, quantity, grown))
    return results


def crossings(points: Sequence[Measured]) -> list[Crossed]:
    results = []
    for case in _cases(points):
        own = _of(points, case)
        for passes in _among(PASSES, own, "passes"):
            ours = series_of(own, case, _OURS, passes, "seconds")
            for other in _among(KINDS, own, "encoder"):
                crossed = crossing(ours, series_of(own, case, other, passes, "seconds"))
                if other != _OURS and crossed:
                    results.append(Crossed(case, passes, other, crossed))
    return results


def _measured_tables(points: Sequence[Measured], case: Case) -> Iterator[str]:
    own = _of(points, case)
    kinds = _among(KINDS, own, "encoder")
    for passes in _among(PASSES, own, "passes"):
        for title, quantity, scale in (("time, s", "seconds", 1.0), ("peak memory, MiB", "bytes", 2.0**20)):
            rows = [("tokens", *kinds)]
            for tokens in sorted({one.tokens for one in own if one.passes == passes}):
                by_encoder = {one.encoder: one for one in own if (one.tokens, one.passes) == (tokens, passes)}
                rows.append((f"{tokens:,}", *(_cell(by_encoder.get(kind), quantity, scale) for kind in kinds)))
            yield f"{passes}, {title}:\n\n{markdown_table(rows)}"


def _cell(measured: Measured | None, quantity: str, scale: float) -> str:
    if measured is None:
        return ""
    if measured.status != "done":
        return f"over {measured.most_seconds:g} s" if measured.status == "out of time" else measured.status
    value = statistics.median(measured.seconds) if quantity == "seconds" else measured.bytes
    return "" if value is None else f"{value / scale:,.3g}" if value < 1000 * scale else f"{value / scale:,.0f}"


def _growth_rows(grown: Sequence[Grown]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("encoder", "", "time", "memory", "tokens")]
    for case, encoder, passes in dict.fromkeys((one.case, one.encoder, one.passes) for one in grown):
        own = {one.quantity: one.growth for one in grown if one[:3] == (case, encoder, passes)}
        cells = [str(own[quantity]) if quantity in own else "" for quantity in QUANTITIES]
        tokens = next(iter(own.values())).tokens
        rows.append((f"{encoder} {case}", passes, *cells, f"{tokens[0]:,} to {tokens[-1]:,}"))
    return rows


def _crossing_rows(crossed: Sequence[Crossed]) -> list[tuple[str, ...]]:
    header = (f"{_OURS} is faster than", "", "from so many tokens on")
    return [header, *((f"{one.than} {one.case}", one.passes, str(one.crossing)) for one in crossed)]


def report_text(record: Record, made: Mapping[str, Any]) -> str:
    """results.md. made: `command_record` of what measured last."""
    points, setup = record.points, record.setup
    machine = ", ".join([setup["processor"], f"threads {setup['threads']}", *setup["gpus"]])
    lines = [
        "# Time and memory of encoders by their tokens",
        f"{machine}; device {setup['device']}, float32; torch {setup['versions']['torch']}. "
        f"{markdown_code(' '.join(made['command']))}, {made['started']}.",
        "Clips of 128 mel bins in patches of 16 x 16. Tokens are patches; class tokens come on top. Each point is "
        "measured in a process of its own: peak memory of the first call, beyond weights and clips (the gradients of "
        "weights count), then the median time of the rounds after it.",
    ]
    for case in _cases(points):
        lines += [f"## {case}", f"![{case}]({picture_name(case)})", *_measured_tables(points, case)]
    lines += [
        "## Growth",
        "Time and memory grow with the tokens to the power of, by least squares on logarithms over the larger half of "
        "the tokens that were measured, with 95 % intervals (bootstrap over numbers of tokens and rounds; of few "
        "numbers of tokens they are rough):",
        markdown_table(_growth_rows(growths(points))),
        "## Where lines cross",
        "By a line between the logarithms of the ratio of times at two numbers of tokens, with 95 % intervals "
        "(bootstrap over rounds):",
        markdown_table(_crossing_rows(crossings(points))),
    ]
    if any(one.passes == PASSES[0] and (one.encoder, one.size) in PUBLISHED_POINTS for one in points):
        lines.append(PUBLISHED)
    return "\n\n".join(lines) + "\n"


def picture_name(case: Case) -> str:
    return f"efficiency-{case.size}-batch{case.batch}.png"


def _curves(points: Sequence[Measured], case: Case, passes: str, quantity: str, scale: float) -> list[Curve]:
    own, curves = _of(points, case), list[Curve]()
    for kind in _among(KINDS, own, "encoder"):
        series = series_of(own, case, kind, passes, quantity)
        failed = {one.tokens: one.status for one in own if (one.encoder, one.passes) == (kind, passes)}
        ends = [
            (float(tokens), marker)
            for tokens in sorted(failed)
            for marker, meaning in _ENDS.items()
            if failed[tokens] == meaning
        ]
        values = [(float(tokens), statistics.median(series[tokens]) / scale) for tokens in series]
        curves.append(Curve(kind, values, KINDS.index(kind), ends=dict(ends[:1])))
        if passes == PASSES[0] and (kind, case.size) in PUBLISHED_POINTS:
            theirs = PUBLISHED_POINTS[kind, case.size][QUANTITIES.index(quantity)]
            pairs = [(float(tokens), value) for tokens, value in zip(PUBLISHED_TOKENS, theirs, strict=False)]
            curves.append(Curve(f"{kind}, published (batch 4, a GPU)", pairs, KINDS.index(kind), stars=True))
    return curves


def write_report(out: Path, record: Record, made: Mapping[str, Any]) -> None:
    """results.md and the pictures beside results.json, and exponents and crossings into that.

    Args:
        made: `command_record` of what measured last.
    """
    points = record.points
    grown = [{**one._asdict(), "case": one.case._asdict(), "growth": one.growth._asdict()} for one in growths(points)]
    crossed = [
        {**one._asdict(), "case": one.case._asdict(), "crossing": one.crossing._asdict()} for one in crossings(points)
    ]
    record.write(out, made=dict(made), growth=grown, crossings=crossed)
    for case in _cases(points):
        panels = {
            passes: {
                "time (s)": _curves(points, case, passes, "seconds", 1),
                "peak memory (MiB)": _curves(points, case, passes, "bytes", 2**20),
            }
            for passes in _among(PASSES, _of(points, case), "passes")
        }
        draw_growth(out / picture_name(case), panels, "tokens", f"{case}, {record.setup['device']}", _ENDS)
    write_text(out / REPORT, report_text(record, made))
