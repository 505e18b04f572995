"""Pictures of runs, scores and spectrograms.

Shapes: T frames, M mel bins, L patches, N masked patches, K pixels of a patch, C classes, D width of a target.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, StrMethodFormatter
from torch import Tensor

from ssamba.evaluation.verification import Rates
from ssamba.files import made_folder, written_beside
from ssamba.models.patches import PatchShape
from ssamba.printable import printable

log = logging.getLogger(__name__)

SECONDS = "seconds"
"""The column of a metrics.csv with the seconds of training."""
_LEGEND = 56  # letters of a line that fits under an axis
_LEGEND_LINE = 0.19  # inches
_SMALL = 12  # classes whose names can be read beside another matrix
_LINE_POINTS = 300  # of a loss in training
_LINES = 6  # of a timeline; more are hard to distinguish


class Curve(NamedTuple):
    """A name, points (x, y) in the order of x, and the number of its colour. stars: the points are not joined, such as
    published ones. ends: x -> a marker at the end of the axis, where there is no point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    stars: bool = False
    ends: Mapping[float, str] = {}


def _shown(text: str, most: int = 60) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG. Text is shown verbatim: names and labels may contain dollars, but no formulas."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with made_folder(path.parent), written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=100)


def draw_reconstruction(
    path: Path, log_mel: Tensor, mask: Tensor, predicted: Tensor, shape: PatchShape, title: str
) -> None:
    """Spectrogram (T, M), the same with the patches of `mask` (L,) hidden, and with those `predicted` (N, K) in their
    place."""
    patches = shape.cut(log_mel.unsqueeze(0))
    columns = shape.grid(log_mel.shape[1], log_mel.shape[0])[1]
    hidden, filled = patches.clone(), patches.clone()
    hidden[0, mask] = float("nan")
    filled[0, mask] = predicted.to(filled.dtype)
    low, high = log_mel.min().item(), log_mel.max().item()
    figure, axes = _one_above_another(("spectrogram", "masked", "reconstruction"), columns, title)
    for axis, image in zip(axes, (patches, hidden, filled), strict=True):
        picture = shape.join(image, log_mel.shape[1], log_mel.shape[0])[0]
        drawn = axis.imshow(
            picture.float().cpu().T.numpy(), origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma"
        )
    figure.colorbar(drawn, ax=axes, label="normalised log-mel")
    save_figure(figure, path)


def _one_above_another(names: Sequence[str], columns: int, title: str) -> tuple[Figure, Any]:
    """A figure and its axes, one for each name, of mel bins over frames; `columns` of patches set its width."""
    figure = Figure(figsize=(max(6.0, columns / 8), 2.5 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True)
    for axis, name in zip(axes, names, strict=True):
        axis.set(title=name, ylabel="mel bin")
    axes[-1].set_xlabel("frame (10 ms)")
    figure.suptitle(_shown(title, 80))
    return figure, axes


def draw_latent(
    path: Path, log_mel: Tensor, mask: Tensor, targets: Tensor, predicted: Tensor, shape: PatchShape, title: str
) -> None:
    """Spectrogram (T, M), below it what a teacher says of its patches, `targets` (L, D), and what is `predicted` (N, D)
    of those of `mask` (L,); others are white. Colours are the targets' first three principal components, red, green
    and blue, so that patches of one colour are alike to the teacher."""
    # A run whose numbers are no longer finite is ended by its losses, with the reason, and not by a picture.
    targets, predicted, mask = targets.float().cpu().nan_to_num(0, 0, 0), predicted.float().cpu(), mask.cpu()
    mean = targets.mean(0)
    axes_of_colour = torch.zeros(3, targets.shape[1])
    found = torch.linalg.svd(targets - mean, full_matrices=False).Vh[:3]
    axes_of_colour[: len(found)] = found  # of one or two patches there are fewer
    told, said = ((vectors - mean) @ axes_of_colour.T for vectors in (targets, predicted))
    low, high = told.quantile(0.02, 0), told.quantile(0.98, 0)
    colours = torch.ones(2, *told.shape)  # of the teacher and of the student, white where it says nothing
    colours[0], colours[1, mask] = (
        ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).nan_to_num(1.0) for x in (told, said)
    )
    rows, columns = shape.grid(log_mel.shape[1], log_mel.shape[0])
    frames, bins = columns * shape.tshape, rows * shape.fshape  # of whole patches
    names = ("spectrogram", "told by the teacher", "predicted where it is hidden")
    figure, axes = _one_above_another(names, columns, title)
    axes[0].imshow(log_mel[:frames, :bins].float().cpu().T.numpy(), origin="lower", aspect="auto", cmap="magma")
    for axis, image in zip(axes[1:], colours, strict=True):
        pixels = image.T.unsqueeze(2).expand(-1, -1, shape.fshape * shape.tshape)
        joined = shape.join(pixels, log_mel.shape[1], log_mel.shape[0])  # (3, T, M)
        axis.imshow(joined.permute(2, 1, 0).numpy(), origin="lower", aspect="auto")
    save_figure(figure, path)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv: of each the names and numbers that it has, a step among them. None where there is no
    file, or one that is damaged, which is logged; other rows are left out."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        log.warning("%s is damaged (%s); its rows are lost", path, error)
        return []
    return [row for row in rows if "step" in row and all(map(_is_number, row.values()))]


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def draw_curves(path: Path, metrics_csv: Path, title: str) -> None:
    """Every metric of a run's metrics.csv over its steps; training and validation values of one name share a panel."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in read_metrics(metrics_csv):
        for name, value in row.items():
            if name not in ("step", "epoch", SECONDS):
                kind, _, panel = name.rpartition("/")
                series.setdefault(panel, {}).setdefault(kind, []).append((float(row["step"]), float(value)))
    if not series:
        return
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(series) :]:
        axis.set_visible(False)
    for axis, (panel, kinds) in zip(axes, series.items(), strict=False):
        for kind, points in kinds.items():
            few = len(points) < 12
            axis.plot(*zip(*points, strict=True), label=kind or None, marker="o" if few else None, markersize=3)
        axis.set(title=panel.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
        if any(kinds):
            axis.legend()
    figure.suptitle(_shown(title, 80))
    save_figure(figure, path)


def draw_confusion(path: Path, confusion: Tensor, labels: Sequence[str], title: str, small: bool = False) -> None:
    """A confusion matrix (C, C), rows true, as shares of each row; names and counts are written in while they can be
    read. small: to stand beside others."""
    classes = len(labels)
    shares = confusion.float() / confusion.sum(1, keepdim=True).clamp(min=1)
    side = 4.2 if small else min(16.0, 3.0 + 0.45 * classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(shares.cpu().numpy(), vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(_shown(title, _LEGEND if small else 100), fontsize=9 if small else None)
    names = [_shown(label, 20 if small else 60) for label in labels]
    if classes <= (_SMALL if small else 60):
        axis.set_xticks(range(classes), names, rotation=90)
        axis.set_yticks(range(classes), names)
    if classes <= (_SMALL if small else 20):
        for row, column in torch.nonzero(confusion).tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(drawn, label="share of the true class")
    save_figure(figure, path)


def draw_bars(path: Path, values: Mapping[str, Mapping[str, float]], ylabel: str, title: str) -> None:
    """Groups of bars: {group: {bar: value}}, the value written on each bar."""
    bars = list(dict.fromkeys(name for group in values.values() for name in group))
    figure = Figure(figsize=(max(6.0, 0.55 * len(values) * len(bars) + 2), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(bars)
    for index, bar in enumerate(bars):
        places = [i + (index - (len(bars) - 1) / 2) * width for i, group in enumerate(values.values()) if bar in group]
        heights = [group[bar] for group in values.values() if bar in group]
        axis.bar_label(axis.bar(places, heights, width * 0.92, label=_shown(bar)), fmt="%.3g", fontsize=8)
    axis.set_xticks(range(len(values)), [_shown(group) for group in values])
    axis.set(ylabel=ylabel, title=_shown(title, 100))
    axis.margins(y=0.15)
    axis.legend()
    save_figure(figure, path)


def draw_error_rates(path: Path, kinds: Mapping[str, Rates], title: str) -> None:
    """Misses by false alarms of each kind of scores, both on the scale of a normal deviate, where they would be
    straight lines if scores were normal (the DET curve)."""
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axis = figure.subplots()
    shares = [0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95]
    ticks = torch.special.ndtri(torch.tensor(shares, dtype=torch.float64)).tolist()
    for kind, rates in kinds.items():
        x, y = (torch.special.ndtri(one.clamp(5e-4, 1 - 5e-4)).tolist() for one in (rates.false_alarms, rates.misses))
        axis.plot(x, y, label=_shown(kind))
    axis.plot(ticks, ticks, color="grey", linewidth=0.8, linestyle=":")
    for ends, set_ticks in ((axis.set_xlim, axis.set_xticks), (axis.set_ylim, axis.set_yticks)):
        set_ticks(ticks, [f"{share:.1%}" for share in shares])
        ends(ticks[0] - 0.2, ticks[-1])
    axis.set(xlabel="false alarms", ylabel="misses", title=_shown(title, 100))
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def draw_growth(
    path: Path, rows: Mapping[str, Mapping[str, Sequence[Curve]]], xlabel: str, title: str, ends: Mapping[str, str]
) -> None:
    """Curves on logarithmic axes, (row, label of y) -> the curves of a panel.

    Args:
        ends: what the markers of `Curve.ends` stand for.
    """
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(5.8 * columns, 3.8 * len(rows) + 1), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
    dots: dict[str, Any] = {"marker": "o", "markersize": 4}
    stars: dict[str, Any] = {"marker": "*", "markersize": 9, "markerfacecolor": "none", "linestyle": ""}
    lines: dict[str, Any] = {}
    for axes, (row, panel) in zip(panels, rows.items(), strict=True):
        for axis, (ylabel, curves) in zip(axes, panel.items(), strict=True):
            for curve in curves:
                x, y = zip(*curve.points, strict=True) if curve.points else ((), ())
                line = axis.plot(x, y, color=f"C{curve.colour}", **(stars if curve.stars else dots))[0]
                lines.setdefault(curve.name, line)
                for place, marker in curve.ends.items():
                    axis.plot([place], [0.97], marker, color=f"C{curve.colour}", transform=axis.get_xaxis_transform())
            axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=row)
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_formatter(lambda value, _: f"{value:,.15g}")
            axis.grid(alpha=0.3)
    for marker, meaning in ends.items():
        lines[meaning] = panels[0, 0].plot([], [], marker, color="grey")[0]
    figure.legend(lines.values(), [_shown(name) for name in lines], loc="outside lower center", ncols=2 * columns)
    figure.suptitle(_shown(title, 120))
    save_figure(figure, path)


def draw_timeline(
    path: Path, spectrogram: Tensor, probabilities: Tensor, seconds: float, labels: Sequence[str], title: str
) -> None:
    """A spectrogram (T, M) and, under it, the probabilities (T, C) of the classes that are highest somewhere; each of
    the T steps is `seconds` long."""
    steps = len(spectrogram)
    scale, unit = (seconds, "s") if steps * seconds < 180 else (seconds / 60, "min")
    figure = Figure(figsize=(12, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    extent = (0, steps * scale, 0, spectrogram.shape[1])
    above.imshow(spectrogram.cpu().T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    above.set(ylabel="mel bin")
    title = printable(title)
    above.set_title(title if len(title) <= 100 else f"...{title[-97:]}")
    highest = probabilities.max(0).values.argsort(descending=True, stable=True)[:_LINES].tolist()
    edges = [scale * step for step in range(steps + 1)]
    lines = [
        below.stairs(probabilities[:, place].cpu().numpy(), edges, baseline=None, linewidth=1.5) for place in highest
    ]
    below.set(xlabel=f"time ({unit})", ylabel="probability", xlim=(0, steps * scale), ylim=(-0.02, 1.02))
    below.grid(alpha=0.3)
    figure.legend(lines, [_shown(labels[place]) for place in highest], loc="outside right center")
    save_figure(figure, path)


Points = Sequence[tuple[float, float]]


def draw_losses(path: Path, groups: Mapping[str, Sequence[tuple[Points, Points]]], xlabel: str, title: str) -> None:
    """The losses of groups of runs on one axis: {group: of each run its points in training and in validation}; a colour
    for each group, thin lines in training, dots in validation."""
    figure = Figure(figsize=(5.0, 3.6 + _LEGEND_LINE * (len(groups) + 2)), layout="constrained")
    axis = figure.subplots()
    shown = []
    for index, (group, runs) in enumerate(groups.items()):
        colour, style = f"C{index % 10}", "-" if index < 10 else "--"
        for training, validation in runs:
            if training:
                axis.plot(*zip(*_thinned(training), strict=True), color=colour, linewidth=0.8, alpha=0.6)
            if validation:
                axis.plot(*zip(*validation, strict=True), style, color=colour, linewidth=1.4, marker="o", markersize=3)
        shown.append(axis.plot([], [], style, color=colour, linewidth=2, label=_shown(group, _LEGEND))[0])
    shown += [
        axis.plot([], [], color="grey", linewidth=0.8, label="training")[0],
        axis.plot([], [], color="grey", marker="o", markersize=3, label="validation")[0],
    ]
    axis.set(xlabel=xlabel, ylabel="loss", title=_shown(title))
    axis.grid(alpha=0.3)
    figure.legend(handles=shown, loc="outside lower left", fontsize=9)
    save_figure(figure, path)


def _thinned(points: Points) -> Points:
    """Means of as many as make a line of few points."""
    size = -(-len(points) // _LINE_POINTS)
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _is_round(value: float) -> bool:
    """Whether it is 2 or 5 times a power of ten."""
    return f"{value:.0e}"[0] in "25"


def draw_trade_off(
    path: Path, groups: Mapping[str, tuple[float, float, float, float]], xlabel: str, ylabel: str, title: str
) -> None:
    """A score by what it costs: {group: (cost, score, low and high end of its interval)}; ends may be NaN. Costs that
    differ by more than tenfold stand on a logarithmic axis."""
    figure = Figure(figsize=(5.0, 3.6 + _LEGEND_LINE * len(groups)), layout="constrained")
    axis = figure.subplots()
    for index, (group, (cost, score, low, high)) in enumerate(groups.items()):
        ends = [[max(0.0, score - low)], [max(0.0, high - score)]] if low <= high else None
        marker = "osD^v<>Pp*"[index // 10 % 10]
        axis.errorbar([cost], [score], yerr=ends, fmt=marker, color=f"C{index % 10}", capsize=4, label=_shown(group))
        axis.annotate(group.partition(":")[0][:4], (cost, score), xytext=(6, 4), textcoords="offset points", fontsize=9)
    costs = [cost for cost, *_ in groups.values()]
    formatter = EngFormatter() if max(costs) >= 10_000 else StrMethodFormatter("{x:g}")
    axis.xaxis.set_major_formatter(formatter)
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axis.set_xscale("log")  # whose own labels are formulas
        axis.xaxis.set(
            major_formatter=formatter, minor_formatter=lambda cost, _: formatter(cost) if _is_round(cost) else ""
        )
    axis.set(xlabel=xlabel, ylabel=ylabel, title=_shown(title))
    axis.margins(x=0.15, y=0.15)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize=9)
    save_figure(figure, path)


def draw_spectrogram(path: Path, spectrogram: Tensor, seconds: float) -> None:
    """A spectrogram (T, M) of so many seconds, small."""
    figure = Figure(figsize=(3.6, 2.0), layout="constrained")
    axis = figure.subplots()
    extent = (0, seconds, 0, spectrogram.shape[1])
    axis.imshow(spectrogram.cpu().T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    axis.set(xlabel="time (s)", ylabel="mel bin")
    save_figure(figure, path)
