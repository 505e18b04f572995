"""What comes from names and labels acts nowhere: on a terminal, in logs, CSV, Markdown, HTML and figures."""

import csv
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from ssamba.cli import main
from ssamba.errors import UserError
from ssamba.evaluation.pages import Section, Table, Text, write_report
from ssamba.evaluation.pictures import draw_bars, draw_confusion, draw_timeline
from ssamba.evaluation.tables import markdown_table
from ssamba.files import NotWritten
from ssamba.hub import SsambaModel
from ssamba.models.checkpoint import save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier
from ssamba.models.settings import AudioSettings, ClassifierSettings
from ssamba.printable import (
    PrintableFormatter,
    csv_cell,
    html_text,
    latex_text,
    markdown_code,
    markdown_text,
    printable,
)

NASTY = (
    "\x1b]0;title\x07\x1b[2J",
    "a\nssamba: fake",
    "a\rb",
    "tab\there",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "a\u2028b",
    "\x9b31m",
    "=cmd|' /C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "`rm -rf`",
    "---",
    "$\\frac",
    "$x$",
    "|a|b|",
    "# title",
    "&amp;",
    "{{ x }}",
    "\\",
    "'",
    '"',
    "a,b;c",
    "long" * 100,
)
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What may be nowhere; the end of a line is for us to use."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose labels are nasty, and the name of what they are."""
    folder = tmp_path_factory.mktemp("nasty") / "model"
    options = {**SIZES["ssast"]["nano"], "hidden_size": 12, "num_hidden_layers": 1}
    torch.manual_seed(0)
    network = AudioClassifier(AudioEncoder("ssast", options, 32, 32, 16, 16, 16, 16), len(NASTY), "mean")
    settings = ClassifierSettings(NASTY, "[x](javascript:1)\n---\n<script>", "cross_entropy", "mean")
    save_model(folder, network, AudioSettings(16000, -4.0, 4.0, "pad"), settings)
    return folder


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Recordings whose names are nasty, and after each of them one that is no recording."""
    paths = []
    for number, text in enumerate(NASTY):
        name = text.replace("/", "-")[:200]
        for ending in (".wav", ".bad.wav"):
            path = tmp_path / "sounds" / str(number) / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"junk")
            paths.append(path)
        soundfile.write(paths[-2], np.random.default_rng(number).normal(0, 0.1, 4000), 16000)
    return paths


def safe(text: str) -> None:
    assert not ACTS.search(text)
    assert not [line for line in text.split("\n") if line.startswith("ssamba: fake")]


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_predictions(
    form: str, model: Path, sounds: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.txt"
    words = ["predict", model, tmp_path / "sounds", "--format", form, "--top", len(NASTY)]
    assert main([str(word) for word in words]) == 1
    shown = capfd.readouterr()
    bars = re.sub(r"\r[^\r\n]*", "", shown.err)  # of a bar that is drawn again
    safe(shown.out)
    safe(bars)
    assert len(shown.out.splitlines()) == len(NASTY) * (2 if form == "jsonl" else 1)
    assert main([*(str(word) for word in words), "--out", str(out)]) == 1
    assert out.read_text() == shown.out
    if form == "jsonl":
        rows = [json.loads(line) for line in shown.out.splitlines()]
        assert {row["path"] for row in rows} == set(map(str, sounds))  # as they are
        assert {answer["label"] for answer in rows[0].get("labels", rows[1].get("labels"))} == set(NASTY)


@pytest.mark.drawn
def test_timelines(model: Path, sounds: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    timelines = tmp_path / "timelines"
    assert main(["predict", str(model), str(tmp_path / "sounds"), "--timeline", str(timelines)]) == 1
    safe(capfd.readouterr().out)
    tables = list(timelines.rglob("*.csv"))
    assert len(tables) == len(NASTY)
    with tables[0].open(newline="") as file:
        header, first = list(csv.reader(file))[:2]
    assert header[4:] == [csv_cell(label) for label in NASTY] and first[2] in header[4:]
    for cell in (*header, first[2]):
        safe(cell)
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [float(cell) for cell in (*first[:2], *first[3:])]  # numbers stay numbers
    assert all(imread(path).std() > 0.01 for path in timelines.rglob("*.png"))


def test_embeddings_keep_names_as_they_are(
    model: Path, sounds: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(model), str(tmp_path / "sounds"), "--out", str(tmp_path / "x.npz")]) == 1
    shown = capfd.readouterr()
    safe(shown.out)
    safe(re.sub(r"\r[^\r\n]*", "", shown.err))
    with np.load(tmp_path / "x.npz") as held:
        assert set(held["names"]) == {str(path) for path in sounds if ".bad" not in path.name}


def test_the_model_card(model: Path, tmp_path: Path) -> None:
    loaded = SsambaModel.from_pretrained(model)
    loaded.record = {
        "command": ["ssamba", "`x` ``y``", "<script>\n# title"],
        "started": "<b>\n---",
        "seed": 0,
        "steps": 1,
        "training_seconds": 1.0,
        "hardware": {"processor": "[x](javascript:1)", "gpus": ["|\n<i>"]},
        "versions": {"torch\n": "\x1b[2J"},
        "data": {"<u>": {"samples": 1, "seconds": 1.0}},
        "test": {"<s>\n": 0.5},
        "last_metrics": {},
    }
    loaded.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    safe(card)
    head, body = card.split("\n---\n")  # and no third
    assert "script" not in head
    plain = re.sub(r"(`+)[^`](?:.*?[^`])?\1(?!`)", "", body)
    assert not re.search(r"<[a-z]|(?<!\\)\]\(", plain.split("```python")[0])
    assert [line for line in body.splitlines() if line.startswith("#")] == [body.strip().splitlines()[0]]


@pytest.mark.drawn
def test_reports_and_figures(tmp_path: Path) -> None:
    count = len(NASTY)
    for text in ("$\\frac", "a\n$\\frac{", "\x1b[2J"):
        draw_confusion(tmp_path / "a.png", torch.eye(count).long(), NASTY, text)
        draw_bars(tmp_path / "b.png", {label: {text: 1.0} for label in NASTY[:6]}, "score", text)
        draw_timeline(tmp_path / "c.png", torch.rand(9, 8), torch.rand(9, count), 0.1, NASTY, text)
    rows = [("task",) * 9, *[(text,) * 9 for text in NASTY]]
    table = markdown_table(rows)
    safe(table)
    assert len(table.splitlines()) == len(rows) + 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {10}
    for text in NASTY:
        write_report(tmp_path, text, [Section(text, [Text(text), Table(rows)])])
        page = (tmp_path / "report.html").read_text()
        safe(page)
        assert "<script" not in page and "\nssamba: fake" not in page


@pytest.mark.parametrize("text", NASTY)
def test_each_kind_of_text(text: str) -> None:
    for show in (printable, csv_cell, html_text, markdown_text, markdown_code, latex_text):
        shown = show(text)
        safe(shown)
        assert "\n" not in shown
    assert printable(printable(text)) == printable(text)
    assert csv_cell(text)[:1] not in tuple("=+-@\t\r")
    assert not set(html_text(text)) & set("<>\"'")
    assert not re.search(r"(?<!\\)[&%$#_]|[~^<>|]", latex_text(text))
    assert "<" not in markdown_text(text) and not re.search(
        r"(?<!\\)[`*_\[\]|#]", markdown_text(text).replace("\\\\", "")
    )


# Messages


@pytest.mark.parametrize("text", NASTY)
def test_messages_show_names_and_keep_their_own_lines(text: str) -> None:
    said = str(UserError(f"{text} is wrong:", f"a {text}", f"b {text}"))
    safe(said)
    assert said == f"{printable(text)} is wrong:\n  a {printable(text)}\n  b {printable(text)}"
    assert str(NotWritten(28, "No space left", text)) == f"{printable(text)} cannot be written: No space left"


def test_the_message_of_a_loaders_worker() -> None:
    """As torch wraps it."""
    inner = UserError("x\nUserError: fake is wrong:", "a", "b")
    text = f"Traceback (most recent call last):\n  File x\nssamba.errors.UserError: {inner}\n"
    wrapped = UserError(f"Caught UserError in DataLoader worker process 0.\nOriginal {text}")
    assert str(wrapped) == str(inner) == "x\\nUserError: fake is wrong:\n  a\n  b"
    text = f"Traceback:\n  File x\nssamba.files.NotWritten: {NotWritten(28, 'No space left', 'x')}\n"
    assert str(NotWritten(f"Caught NotWritten in worker.\nOriginal {text}")) == "x cannot be written: No space left"


def test_logs() -> None:
    formatter = PrintableFormatter("%(name)s: %(message)s")
    record = logging.LogRecord("ssamba.data", logging.WARNING, "", 0, "skipped %s", ("a\nssamba: fake\x1b[2J",), None)
    assert formatter.format(record) == "ssamba.data: skipped a\\nssamba: fake\\x1b[2J"
    record = logging.LogRecord("other", logging.WARNING, "", 0, "one\ntwo\x1b[2J", (), None)
    assert formatter.format(record) == "other: one\ntwo\\x1b[2J"


def test_a_place_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in NASTY:
        for words in (["shards", "info"], ["finetune"], ["stats"]):
            assert main([*words, str(tmp_path / f"{text[:99]}.yaml")]) == 2
            said = capsys.readouterr().err
            safe(said)
            assert len(said.splitlines()) == 1 and said.startswith("ssamba: ")
