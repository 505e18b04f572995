"""The table over run folders, and the page."""

import html.parser
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssamba.config import load_recipe
from ssamba.errors import UserError
from ssamba.evaluation.comparison import HEADER, Run, markdown, read_run, table, write_page


def finetuned_run(recipes: dict[str, Path], accuracy: float, seconds: float, *words: str, mean_ap: float = 0.0) -> Run:
    recipe = load_recipe(recipes["finetune"], ["run_dir=run", *words])
    scores = {"mAP": mean_ap} if recipe.task.loss == "bce" else {"accuracy": accuracy}  # type: ignore[union-attr]
    return Run(Path("run"), recipe, {"test": scores, "training_seconds": seconds, "parameters": 1234567, "steps": 4000})


def test_scores_are_means_and_deviations_over_seeds(recipes: dict[str, Path]) -> None:
    accuracies, seconds = [0.81, 0.86, 0.84], [10.2, 11.9, 30.0]
    runs = [finetuned_run(recipes, a, s, f"seed={n}") for n, (a, s) in enumerate(zip(accuracies, seconds, strict=True))]
    other = finetuned_run(recipes, 0.5, 7, "model.encoder=ssast", "model.pretrained=somewhere")
    few = finetuned_run(recipes, 0.25, 7.4, "data.label_fraction=0.05")
    rows = table([runs[0], other, runs[1], few, runs[2]])
    score = f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}"
    assert rows == [
        ("sound", "ssamba nano 16x16", "from scratch", "100%", score, "3", "1,234,567", "4,000", "17 s"),
        ("sound", "ssast nano 16x16", "pretrained", "100%", "0.500", "1", "1,234,567", "4,000", "7 s"),
        ("sound", "ssamba nano 16x16", "from scratch", "5%", "0.250", "1", "1,234,567", "4,000", "7 s"),
    ]
    assert score == "0.837 ± 0.025"


def test_runs_of_other_lengths_are_not_averaged(recipes: dict[str, Path]) -> None:
    long, short = (finetuned_run(recipes, accuracy, 7) for accuracy in (0.75, 0.5))
    short = Run(short.folder, short.recipe, {**short.record, "steps": 10})
    steps, score = HEADER.index("steps"), HEADER.index("score")
    assert [(row[steps], row[score]) for row in table([long, short])] == [("4,000", "0.750"), ("10", "0.500")]


def test_variants_of_an_encoder_are_not_averaged(recipes: dict[str, Path]) -> None:
    words = (
        [],
        ["model.residual=doubling"],
        *(["model.encoder=aum", f"model.scan_layout={x}"] for x in ("fo_bi", "fo_fo")),
    )
    rows = table([finetuned_run(recipes, 0.5, 7, *overrides) for overrides in words])
    names = ["ssamba nano 16x16", "ssamba doubling nano 16x16", "aum fo_bi nano 16x16", "aum fo_fo nano 16x16"]
    assert [row[1] for row in rows] == names


def test_several_labels_are_scored_by_map(recipes: dict[str, Path]) -> None:
    run = finetuned_run(recipes, 0.0, 1, "task.loss=bce", "task.label=tags", mean_ap=0.625)
    assert run.score == 0.625
    assert run.group[0] == "tags"


def test_finished_runs_are_read_from_their_folders(
    pretrained: Callable[[str], Path], finetuned: Callable[[str], Path]
) -> None:
    first, second = read_run(pretrained("ssast")), read_run(finetuned("ssast"))
    for run in (first, second):
        assert run.record == json.loads((run.folder / "run.json").read_text())
        assert run.recipe == load_recipe(run.folder)
    assert first.score == first.record["last_metrics"]["val/accuracy"]
    assert second.score == json.loads((second.folder / "test" / "scores.json").read_text())["accuracy"]
    assert first.group == ("pretraining", "ssast nano 16x16", "", "none")
    assert second.group == ("sound", "ssast nano 16x16", "pretrained", "100%")
    (row, _) = table([first, second])
    assert row[HEADER.index("parameters")] == f"{first.record['parameters']:,}"


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no run.json; expected the folder of a finished run"):
        read_run(tmp_path)


def test_markdown_lines_up(recipes: dict[str, Path]) -> None:
    rows = table([finetuned_run(recipes, 0.5, 7), finetuned_run(recipes, 0.25, 7, "data.label_fraction=0.05")])
    lines = markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(HEADER) and set(cells[1][0]) == {"-"}
    assert cells[2:] == [list(row) for row in rows]


class Page(html.parser.HTMLParser):
    """The cells of each row, and the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[dict[str, Any]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.rows and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")


def test_the_page_holds_table_and_pictures_and_lets_no_name_break_it(tmp_path: Path) -> None:
    rows = [("<b>&", "ssamba nano 16x16", "pretrained", "100%", "0.500", "1", "1", "2", "3 s")]
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    picture = tmp_path / "run" / "pictures" / 'a "b".png'
    picture.write_bytes(b"")
    write_page(tmp_path / "report.html", "A & B", "Half < whole.", rows, {"what <it> is": picture})
    page = Page((tmp_path / "report.html").read_text())
    assert page.rows == [list(HEADER), list(rows[0])]
    (shown,) = page.pictures
    assert (tmp_path / shown["src"]).resolve() == picture and not Path(shown["src"]).is_absolute()
    assert shown["alt"] == "what <it> is"
    assert {"A & B", "Half < whole.", "what <it> is"} <= set(page.texts)
    assert not {"b", "it"} & set(page.tags)
