"""The command, over run folders that training would write, over trained ones, and what it says of mistakes."""

import csv
import html.parser
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssamba.cli import main
from ssamba.comparison.compare import compare_runs
from ssamba.comparison.runs import find_runs, read_examples, read_run
from ssamba.comparison.tables import pair_rows
from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import score_intervals

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
GOOD, BAD = (True,) * 22 + (False,) * 2, (True, False) * 12


def seeds(make: Make, name: str, hits: Any, count: int = 3, *words: str, **options: Any) -> list[Path]:
    """Runs of several seeds, the examples that they miss shifted by one from seed to seed."""
    return [
        make(f"{name}-{seed}", f"seed={seed}", *words, hits=(*hits[seed:], *hits[:seed]), **options)
        for seed in range(count)
    ]


def cells(text: str, header: str) -> dict[str, list[str]]:
    """The rows of the Markdown table whose header begins so, by their first cell."""
    lines = text.split(f"| {header}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


# Tables


def test_groups_of_seeds_with_a_difference_that_is_one_and_one_that_is_none(make_run: Make, capsys: Capture) -> None:
    runs = [
        *seeds(make_run, "good", GOOD),
        *seeds(make_run, "bad", BAD, 3, "model.encoder=ssast"),
        *seeds(make_run, "mean", GOOD[::-1], 3, "task.pooling=mean"),
    ]
    assert main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    scores = cells(said, "group | model.encoder | task.pooling ")
    assert scores["A"][:4] == ["ssamba", "statistics", "3 seeds", "24"]
    assert scores["B"][0] == "ssast" and scores["C"][1] == "mean"
    assert scores["A"][4].startswith("0.917 [") and scores["B"][4].startswith("0.500 [")
    pairs = cells(said, "groups ")
    assert pairs["A - B"][0] == "+0.417" and pairs["A - B"][-1] == "A"
    assert pairs["A - C"][-1] == "not told apart" and pairs["B - C"][-1] == "C"
    costs = cells(said, "group | parameters ")
    assert costs["A"] == ["1,234", "-", "100.5", "1 GB", "36 s", "none", "-", "-"]
    assert "corrected for 3 of them (Holm)" in said
    # In whatever order they are given.
    assert main(["compare", *map(str, [*runs[2::-1], *runs[:2:-1]])]) == 0
    turned = capsys.readouterr().out
    assert cells(turned, "group | model.encoder | task.pooling ")["A"] == scores["A"]
    assert cells(turned, "groups ")["A - C"] == [*pairs["A - B"][:-1], "A"]


def test_one_run_has_the_interval_of_its_own_report_and_is_said_to_be_one(make_run: Make, capsys: Capture) -> None:
    runs = make_run("good", hits=GOOD), make_run("bad", "model.encoder=ssast", hits=BAD)
    comparison = compare_runs([read_run(run) for run in runs])
    for group, run in zip(comparison.groups, runs, strict=True):
        own = json.loads((run / "test" / "scores.json").read_text())
        for name in ("accuracy", "balanced_accuracy"):
            assert list(group.scores[name]) == [own[name], own[f"{name}_low"], own[f"{name}_high"]]
    (pair,) = comparison.pairs
    assert pair.significant and pair_rows(comparison)[1][-1] == "A, of these runs"
    assert any("A, B: one seed each" in note for note in comparison.notes)


def test_what_is_admitted_is_a_column_and_a_note(
    make_run: Make, tmp_path: Path, capsys: Capture, refused: Callable[..., str]
) -> None:
    runs = [make_run("short"), make_run("long", "trainer.max_steps=9"), make_run("other", mean=-1.0)]
    said = refused("compare", *runs)
    assert f"trainer.max_steps (budget): 4 in {runs[0]}, {runs[2]}; 9 in {runs[1]}" in said
    assert f"audio.mean (statistics): -3.6 in {runs[0]}, {runs[1]}; -1 in {runs[2]}" in said
    assert "--allow budget statistics puts them" in said
    assert main(["compare", *map(str, runs), "--allow", "budget", "audio.mean"]) == 0
    said = capsys.readouterr().out
    assert "| group | audio.mean | trainer.max_steps |" in said
    assert "no equals: they differ in audio.mean, trainer.max_steps, which --allow admitted." in said


def test_members_of_one_command_are_found_below_its_folder(make_run: Make, tmp_path: Path, capsys: Capture) -> None:
    """As finetune --seeds --folds puts them: root/fold-a/seed-0; and each run once, however it is named."""
    for encoder, hits in (("ssamba", GOOD), ("ssast", BAD)):
        for fold in ("ada", "ben"):
            found = Predictions(
                [f"{fold}-{i}" for i in range(24)],
                torch.eye(4)[[0 if hit else 1 for hit in hits]] * 3,
                torch.zeros(24).long(),
            )
            for seed in (0, 1):
                words = ["data.test=[]", "data.fold_by=speaker", f"data.fold={fold}", f"model.encoder={encoder}"]
                make_run(f"{encoder}/fold-{fold}/seed-{seed}", *words, f"seed={seed}", hits=found)
    (tmp_path / "ssamba" / "recipes").mkdir()
    words = [tmp_path / "ssamba", tmp_path / "ssast", tmp_path / "ssast" / "fold-ada"]
    assert main(["compare", *map(str, words)]) == 0
    scores = cells(capsys.readouterr().out, "group | model.encoder ")
    assert [row[:3] for row in scores.values()] == [[name, "2 seeds x 2 folds", "48"] for name in ("ssamba", "ssast")]


def test_several_labels_are_compared_by_map(make_run: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(40, 3, generator=generator) < 0.4).float()
    keys = [str(i) for i in range(40)]
    noise = torch.randn(40, 3, generator=generator)
    words = ["task.loss=bce", "task.label=tags"]
    sharp = make_run("sharp", *words, hits=Predictions(keys, 4 * labels + noise, labels))
    order = torch.randperm(40, generator=generator).tolist()
    dull = Predictions([keys[i] for i in order], (0.5 * labels + noise)[order], labels[order])
    comparison = compare_runs([read_run(sharp), read_run(make_run("dull", *words, "model.size=tiny", hits=dull))])
    assert comparison.metric == "mAP"
    values = [group.scores["mAP"].value for group in comparison.groups]
    found = [score_intervals(Predictions(*one))["mAP"].value for one in ((keys, 4 * labels + noise, labels), dull)]
    assert values == pytest.approx(found, abs=1e-6)
    (pair,) = comparison.pairs
    assert pair.difference.value == pytest.approx(found[0] - found[1], abs=1e-6) and pair.significant


def test_what_is_said_is_compared_by_characters(make_run: Make) -> None:
    def run(name: str, edits: list[int], *words: str) -> Path:
        folder = make_run(name, "task.loss=ctc", "data.short=pad", *words, losses=())
        (folder / "test" / "scores.npz").unlink()
        with (folder / "test" / "texts.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "true", "greedy", "characters", "greedy edits"])
            writer.writerows([f"clip {i}", "abcd" * 5, "abc", 20, count] for i, count in enumerate(edits))
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "test": {"CER": sum(edits) / 20 / len(edits)}}))
        return folder

    worse, better = run("worse", [4, 5, 6] * 8), run("better", [1, 2, 3] * 8, "model.size=tiny")
    comparison = compare_runs(find_runs([worse, better])[0])
    assert comparison.metric == "CER" and [one.scores["CER"].value for one in comparison.groups] == [0.25, 0.1]
    assert pair_rows(comparison)[1][-1] == "B, of these runs"  # fewer are better
    (better / "test" / "texts.csv").write_text("key,true,greedy,characters,greedy edits\na,b,c,0,1\n")
    with pytest.raises(UserError, match="texts.csv cannot be used"):
        compare_runs(find_runs([worse, better])[0])


# Units of the bootstrap


def test_groups_of_recordings_are_drawn_as_in_the_runs_own_intervals(make_run: Make, corpus: Path) -> None:
    """By the scores themselves; of an older version, by the test shards."""
    speakers = [f"speaker {i // 8}" for i in range(24)]
    words = ["evaluation.group_by=speaker"]
    run = make_run("new", *words, groups=speakers)
    assert read_examples(read_run(run)).units == speakers
    keys = [f"{sound}-{name}-{take}" for sound in ("falling", "high") for name in ("ada", "ben") for take in (6, 7)]
    found = Predictions(keys, torch.eye(4)[torch.zeros(8).long()], torch.zeros(8).long())
    old = make_run("old", *words, hits=found)
    assert read_examples(read_run(old)).units == ["ada", "ada", "ben", "ben"] * 2
    hops = Predictions([f"falling-ada-6@{hop}" for hop in range(8)], found.logits, found.labels)
    of_hops = make_run("hops", "task.hop_ms=320", "data.short=pad", hits=hops)
    assert set(read_examples(read_run(of_hops)).units) == {"falling-ada-6"}
    lost = make_run("lost", *words, f"data.test={corpus / 'gone'}", hits=found)
    with pytest.raises(
        UserError, match=r"are those of groups by speaker, which are told by its test shards alone: .*gone"
    ):
        read_examples(read_run(lost))
    other = make_run("other", *words, hits=Predictions(["nobody"], torch.eye(4)[:1], torch.zeros(1).long()))
    with pytest.raises(UserError, match="nothing tells the group of nobody any more"):
        read_examples(read_run(other))


# Files


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        self.sources += [(tag, value or "") for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._within == "h2":
            self.headings.append(data.strip())
        self._within = ""


@pytest.mark.drawn
def test_two_trained_runs_as_files(
    recipes: dict[str, Path],
    pretrained: Callable[[str], Path],
    finetuned: Callable[[str], Path],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """One from pretrained weights, one from scratch: everything of it comes from what training wrote."""
    scratch = tmp_path / "<scratch>"
    words = [f"run_dir={scratch}", "model.encoder=ssast", "optimizer.learning_rate=0.01"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    out = tmp_path / "out"
    words = ["compare", str(finetuned("ssast")), str(scratch), "--allow", "statistics", "--out", str(out)]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    scores, costs = (
        cells(said, "group | model.pretrained | optimizer.learning_rate "),
        cells(said, "group | parameters "),
    )
    assert [row[:2] for row in scores.values()] == [["pretrained", "0.001"], ["from scratch", "0.01"]]
    assert "written to" in said
    held = json.loads((out / "comparison.json").read_text())
    records = [json.loads((run / "run.json").read_text()) for run in (finetuned("ssast"), scratch)]
    before = json.loads((pretrained("ssast") / "run.json").read_text())
    assert records[0]["origin"]["data"] == before["data"] and records[1]["origin"] is None
    for group, record, row in zip(held["groups"], records, costs.values(), strict=True):
        assert group["scores"]["accuracy"]["value"] == pytest.approx(record["test"]["accuracy"])
        assert group["costs"]["parameters"] == record["parameters"] and row[0] == f"{record['parameters']:,}"
        assert group["costs"]["hours"] == pytest.approx(record["training_seconds"] / 3600)
        assert group["costs"]["macs"] > 0 and group["costs"]["clips_per_second"] > 0
    first, second = (group["costs"] for group in held["groups"])
    assert first["macs"] == second["macs"] and second["training_macs"] == 3 * second["macs"] * 4 * 4
    assert first["training_macs"] > second["training_macs"]  # with that of pretraining
    assert first["pretraining_hours"] == pytest.approx(before["training_seconds"] / 3600)
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [
        group["scores"]["accuracy"]["value"] for group in held["groups"]
    ]
    with (out / "comparison-pairs.csv").open(newline="") as file:
        (pair,) = csv.DictReader(file)
    assert float(pair["difference"]) == pytest.approx(held["pairs"][0]["value"])
    assert r"\begin{tabular}" in (out / "comparison.tex").read_text()
    # The page: nothing from elsewhere, all that there is to see and to hear.
    text = (out / "comparison.html").read_text()
    page = Page(text)
    assert page.headings[:6] == ["Scores", "Differences", "Costs", "Loss", "Score by cost", "Confusion"]
    assert {source[:11] for _, source in page.sources} == {"data:image/", "data:audio/"}
    assert sum(tag == "audio" for tag, _ in page.sources) == len(list((out / "pictures").glob("example-*.png"))) > 0
    assert "&lt;scratch&gt;" in text and "<scratch>" not in text
    for name in ("loss-steps", "loss-time", "score-time", "score-macs", "confusion-A", "confusion-B"):
        assert (out / "pictures" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"(pictures/{name}.png)" in (out / "comparison.md").read_text()
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_what_is_not_there_is_left_out_with_a_sentence(make_run: Make, tmp_path: Path) -> None:
    """Runs of an older version, without the time of each row; test shards that are gone; a model that is gone."""
    runs = make_run("good", hits=GOOD), make_run("bad", "model.encoder=ssast", hits=BAD)
    for run in runs:
        rows = list(csv.reader((run / "metrics.csv").open(newline="")))
        place = rows[0].index("seconds")
        text = "\n".join(",".join(row[:place] + row[place + 1 :]) for row in rows)
        (run / "metrics.csv").write_text(text + "\n")
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    told = (out / "comparison.md").read_text()
    assert "By time it is not drawn: some of the runs are of a version that did not log it." in told
    assert "By multiply-adds of all training, pretraining included it is not drawn" in told
    assert "The recordings cannot be heard here: data.test holds other shards than the run had." in told
    assert re.search(r"\| 0\d\d +\| \w+ +\| said \w+", told)  # the names alone
    assert not list((out / "pictures").glob("example-*")) and (out / "pictures" / "loss-steps.png").exists()


# Mistakes


def test_mistakes_are_one_message(
    make_run: Make, pretrained: Callable[[str], Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    good, other = make_run("runs/good", hits=GOOD), make_run("runs/bad", "model.encoder=ssast", hits=BAD)
    unscored = make_run("unscored", "model.size=tiny")
    shutil.rmtree(unscored / "test")
    unfinished = make_run("more/unfinished", "seed=9")
    (unfinished / "run.json").unlink()
    (tmp_path / "empty").mkdir()
    for words, why in (
        ([], "there is nothing to compare; expected run folders, or --wandb-dir DIR"),
        ([good], f"{good} is one run alone; expected two runs or more"),
        ([good, good], "is one run alone"),
        ([good, tmp_path / "empty"], f"{tmp_path / 'empty'} holds no run; expected the folder of a finished run"),
        ([good, tmp_path / "nowhere"], "nowhere does not exist"),
        ([good, tmp_path / "runs" / "good" / "recipe.yaml"], "recipe.yaml is no folder"),
        ([tmp_path / "runs", tmp_path / "more"], "1 of 3 runs are not finished, and have no run.json: "),
        ([good, unscored], f"{unscored} has no scores of examples (test/scores.npz)"),
        ([good, pretrained("ssast")], "is a pretraining run, which has no scores of examples"),
        ([good, other, "--allow", "data.cache"], "--allow data.cache changes nothing"),
        ([good, other, "--group", "x"], "--group is of the runs of --wandb-dir"),
        ([good, other, "--overwrite"], "--overwrite is for --out FOLDER"),
        (
            [good, other, "--out", tmp_path / "runs", "--overwrite"],
            "has no comparison.json, so it is not this command's",
        ),
    ):
        assert why in refused("compare", *words), words
    np.savez(good / "test" / "scores.npz", keys=np.zeros(3, np.uint8))
    assert "scores.npz cannot be used" in refused("compare", good, other)


def test_pretraining_runs_below_a_folder_are_passed_over(
    make_run: Make, pretrained: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    make_run("runs/good", hits=GOOD), make_run("runs/bad", "model.encoder=ssast", hits=BAD)
    shutil.copytree(pretrained("ssast"), tmp_path / "runs" / "pretrain")
    assert main(["compare", str(tmp_path / "runs")]) == 0
    assert "Passed over: 1 pretraining runs, which have no scores of examples." in capsys.readouterr().out


def test_groups_on_other_examples_are_not_tested(make_run: Make, capsys: Capture) -> None:
    more = {
        "train": {"samples": 1, "seconds": 1.0, "fingerprint": "t" * 64},
        "test": {"samples": 20, "seconds": 1.0, "fingerprint": "u" * 64},
    }
    runs = make_run("a", hits=GOOD), make_run("b", "model.size=tiny", hits=GOOD[4:], data=more)
    assert main(["compare", *map(str, runs), "--allow", "data"]) == 0
    said = capsys.readouterr().out
    assert cells(said, "groups ")["A - B"] == ["-", "-", "-", "-", "not tested"]
    assert "Not tested: pairs without scores of the same examples" in said
    comparison = compare_runs([read_run(run) for run in runs], ["data"])
    assert math.isnan(comparison.pairs[0].corrected) and not comparison.pairs[0].significant
