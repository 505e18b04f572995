"""Reports: one page with everything in it, its Markdown twin, and names that act in neither."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.pages import Listing, Picture, Section, Table, Text, write_report
from ssamba.evaluation.report import score_rows, write_run_report
from ssamba.evaluation.scores import fill_scores

HOSTILE = "<script>alert(1)</script>|`*[x](http://a.b)\x1b[2J\u202e"


class Page(HTMLParser):
    """Tags, their addresses and texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_block_is_in_both(tmp_path: Path, any_picture: bytes) -> None:
    (tmp_path / "a b.png").write_bytes(any_picture)
    blocks = [
        Text("It is < 3."),
        Table([("head", "b|c"), ("cell", "_d_")]),
        Picture(tmp_path / "a b.png", "what it is"),
        Listing("key: value\n  more: <x>"),
    ]
    write_report(tmp_path, "A & B", [Section("Part", blocks)])
    page = Page(tmp_path / "report.html")
    assert {"A & B", "Part", "It is < 3.", "head", "b|c", "_d_", "what it is"} <= set(page.texts)
    assert "key: value\n  more: <x>" in page.texts
    (address,) = page.addresses
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(content) == any_picture
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[:3] == ["# A &amp; B", "", "## Part"]
    assert {
        "It is &lt; 3.",
        r"| head | b\|c  |",
        r"| cell | \_d\_ |",
        "![what it is](a%20b.png)",
        "    key: value",
        "      more: <x>",
    } <= set(lines)


def record(test: dict[str, float], last: dict[str, float]) -> dict[str, object]:
    return {
        "command": ["ssamba", HOSTILE],
        "started": "2026-01-01",
        "seed": 3,
        "parameters": 1234567,
        "steps": 4000,
        "training_seconds": 61.25,
        "peak_memory_bytes": {"process": 2_500_000_000},
        "versions": {"torch": "2.11"},
        "hardware": {"processor": "a processor", "threads": 2, "gpus": []},
        "last_metrics": last,
        "test": test,
        "data": {"train": {"samples": 2700, "seconds": 3600.0, "fingerprint": "ab" * 32}},
        "skipped_samples": [],
    }


@pytest.fixture
def run(tmp_path: Path, any_picture: bytes) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "curves.png").write_bytes(any_picture)
    (tmp_path / "recipe.yaml").write_text("task: <b>\n")
    return tmp_path


def test_a_run_says_what_it_scored_and_where_it_is_wrong(run: Path) -> None:
    (run / "test").mkdir()
    predictions = Predictions([HOSTILE, "b"], torch.tensor([[3.0, 0], [2.0, 0]]), torch.tensor([1, 0]))
    scores = fill_scores(run / "test", predictions, ["cat", HOSTILE], "title")
    baseline = {
        "name": "statistics",
        "setting": 0.01,
        "training_clips": 40,
        "scores": {**scores, "accuracy": 0.25},
        "difference": {"accuracy": 0.25, "accuracy_low": -0.125, "accuracy_high": 0.5},
    }
    write_run_report(run, {**record(scores, {}), "baseline": baseline})
    page, markdown = Page(run / "report.html"), (run / "report.md").read_text()
    assert not {"script", "a", "b", "iframe", "link"} & set(page.tags)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert page.tags.count("img") == 2  # curves, confusion
    shown = r"<script>alert(1)</script>|`*[x](http://a.b)\x1b[2J\u202e"
    assert page.texts.count(shown) == 3 and "said cat" in page.texts  # the clip, its class, and that in the table
    for text in ("\x1b", "\u202e", "<script", "[x](http"):
        assert text not in markdown
    ends = f"{scores['accuracy']:.4f} [{scores['accuracy_low']:.4f}, {scores['accuracy_high']:.4f}]"
    assert ends in page.texts and "0.2500 [-0.1250, 0.5000]" in page.texts
    assert any(
        "on the mean and standard deviation over time of each mel bin, learned from 40 training" in text
        for text in page.texts
    )
    for fact in ("61.2 s", "2.50 GB", "1,234,567", "4,000", "a processor, 2 threads", "torch 2.11"):
        assert fact in page.texts and fact in markdown.replace("\\", "")
    assert re.search(r"^    task: <b>$", markdown, re.MULTILINE)  # as code


def test_a_run_without_a_test_split_says_its_last_validation(run: Path) -> None:
    write_run_report(run, record({}, {"val/loss": 0.5, "train/loss": 0.25}))
    page = Page(run / "report.html")
    assert "val/loss" in page.texts and "0.5000" in page.texts and "train/loss" not in page.texts


def test_scores_without_an_interval_stand_alone() -> None:
    kinds = {"model": {"accuracy": 0.5, "clips": 24}, "difference": {"accuracy": 0.1}}
    assert score_rows(kinds) == [("", "accuracy", "clips"), ("model", "0.5000", "24"), ("difference", "0.1000", "")]
