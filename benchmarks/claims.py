"""What is claimed of state space models for audio beside attention and recurrence, each claim with what was measured.

    python benchmarks/claims.py --efficiency OUT OUT_OF_OTHER_THREADS --recall OUT [--out docs/claims.md]
                                [--size tiny] [--batch 1] [--tokens 22000]

complexity      exponents of time and memory in the tokens: the first OUT of `ssamba bench efficiency`
efficiency      time and memory at --tokens, or the next fewer that were measured, and the most tokens that fitted
dependencies    accuracy at the largest distance, beside chance: an OUT of benchmarks/recall.py
parallelism     how many times as fast a step is with the threads of the OUT that has more, at the most tokens that both
                have, beside the steps of a layer that must wait for each other, by its definition

A cell says what is in these files and nothing else; what they do not have is said to be missing. Each row ends with the
commands that made it.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import recall
from ssamba.errors import UserError
from ssamba.evaluation.efficiency_points import PASSES
from ssamba.evaluation.efficiency_report import Case, growths, series_of
from ssamba.evaluation.efficiency_runs import RESULTS, Record
from ssamba.evaluation.tables import markdown_table
from ssamba.files import read_json, write_text

COLUMNS = {
    "Audio Mamba": ("ssamba", "aum"),
    "transformer, Conformer": ("ssast", "ssast-plain", "conformer"),
    "RNN": ("bilstm",),
}
WAITS = {
    "Audio Mamba": "a scan, which blocks of tokens share out",
    "transformer, Conformer": "none: all tokens at once",
    "RNN": "each token waits for the one before",
}
MISSING = "not measured"
STEP = PASSES[1]


def read_efficiency(folder: Path) -> tuple[Record, str]:
    """The points in a folder, and the command that made them."""
    expected = "what `ssamba bench efficiency` writes"
    record = read_json(folder / RESULTS, Record, expected)
    made = read_json(folder / RESULTS, dict[str, Any], expected).get("made")
    if made is None:
        raise UserError(f"{folder} has no report yet; expected `ssamba bench efficiency` to have come to its end there")
    return record, " ".join(made["command"])


def joined(cells: Iterable[tuple[str, str | None]]) -> str:
    """Encoders and what is said of each."""
    return "; ".join(f"{name} {said or MISSING}" for name, said in cells)


def complexity(record: Record, case: Case, quantity: str, encoder: str) -> str | None:
    grown = {(one.case, one.encoder, one.passes, one.quantity): one.growth for one in growths(record.points)}
    found = grown.get((case, encoder, STEP, quantity))
    return None if found is None else str(found)


def efficiency(record: Record, case: Case, tokens: int, encoder: str) -> str | None:
    """Of a step at the most tokens that are no more than these."""
    times, taken = (series_of(record.points, case, encoder, STEP, quantity) for quantity in ("seconds", "bytes"))
    within = [one for one in times if one <= tokens]
    if not within:
        return None
    most = max(within)
    memory = f", {taken[most][0] / 2**20:,.0f} MiB" if most in taken else ""
    at = "" if most == tokens else f" at {most:,}"
    return f"{statistics.median(times[most]):.3g} s{memory}{at}, up to {max(times):,} tokens"


def parallelism(few: Record, many: Record, case: Case, encoder: str) -> str | None:
    """The ratio of a step's times, by numbers of threads."""
    slow, fast = (series_of(one.points, case, encoder, STEP, "seconds") for one in (few, many))
    if not (both := slow.keys() & fast.keys()):
        return None
    tokens = max(both)
    ratio = statistics.median(slow[tokens]) / statistics.median(fast[tokens])
    return f"{ratio:.2f} at {tokens:,} tokens"


def table(efficiencies: Sequence[Path], recalled: Path | None, case: Case, tokens: int) -> list[tuple[str, ...]]:
    """The rows of claims."""
    read = [read_efficiency(folder) for folder in efficiencies]
    rows: list[tuple[str, ...]] = [("claim", "measured", *COLUMNS, "made by")]
    if read:
        (record, command), others = read[0], read[1:]
        for quantity, name in (("seconds", "time"), ("bytes", "memory")):
            said = f"power of the tokens that the {name} of a step grows with, {case}"
            cells = [
                joined((one, complexity(record, case, quantity, one)) for one in kinds) for kinds in COLUMNS.values()
            ]
            rows.append(("complexity", said, *cells, f"`{command}`"))
        said = f"a step at {tokens:,} tokens, {case}"
        cells = [joined((one, efficiency(record, case, tokens, one)) for one in kinds) for kinds in COLUMNS.values()]
        rows.append(("efficiency", said, *cells, f"`{command}`"))
        for other, other_command in others:
            few, many = sorted((record, other), key=lambda one: int(one.setup["threads"]))
            said = f"{few.setup['threads']} to {many.setup['threads']} threads: times as fast; what waits, {case}"
            cells = [
                f"{joined((one, parallelism(few, many, case, one)) for one in kinds)}; {WAITS[name]}"
                for name, kinds in COLUMNS.items()
            ]
            rows.append(("parallelism", said, *cells, f"`{command}`, `{other_command}`"))
    if recalled is not None:
        rows.append(dependencies(recalled))
    return rows


def dependencies(folder: Path) -> tuple[str, ...]:
    held = read_json(folder / "results.json", dict[str, Any], "what benchmarks/recall.py writes")
    task = recall.Task(**{**held["task"], "distances": tuple(held["task"]["distances"])})
    scores, distance = recall.scores_of(task, held["runs"]), task.distances[-1]
    said = f"a marked event told {distance:,} tokens later, accuracy; chance is {1 / recall.CLASSES:.3f}"
    cells = [
        joined((one, str(scores[one][distance]) if one in scores else None) for one in kinds if one != "ssast-plain")
        for kinds in COLUMNS.values()
    ]
    return ("long dependencies", said, *cells, f"`{' '.join(held['made']['command'])}`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--efficiency", type=Path, nargs="+", default=[])
    parser.add_argument("--recall", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "claims.md")
    parser.add_argument("--size", default="tiny")
    for name, default in (("batch", 1), ("tokens", 22000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rows = table(given.efficiency, given.recall, Case(given.batch, given.size), given.tokens)
    text = (
        "# Claims\n\nWhat is claimed of state space models for audio, beside what was measured here: by the commands "
        "at the end of each row, then by `python benchmarks/claims.py`. A step is a forward and a backward pass.\n\n"
        f"{markdown_table(rows)}\n"
    )
    write_text(given.out, text)
    print(text)


if __name__ == "__main__":
    main()
