"""The test of long dependencies asks what it says, and keeps its runs; the table of claims is made of files alone."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.evaluation.efficiency_points import KINDS, PASSES, Measured
from ssamba.evaluation.efficiency_runs import Record
from ssamba.masking import clip_generator

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recall(benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose runs are made by this process."""
    script = benchmark("recall")
    monkeypatch.setattr(script, "processes", lambda *_: nullcontext(None))
    monkeypatch.setattr(script, "TEST_CLIPS", 30)
    monkeypatch.setattr(script, "VALIDATION_CLIPS", 20)
    return script


def call(script: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


@pytest.mark.parametrize("others", [(), (4, 16, 40)])
def test_the_answer_is_the_class_of_the_tone_marked_last(
    recall: Any, monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...]
) -> None:
    monkeypatch.setattr(recall, "NOISE", 0.0)
    apart = [4, 16, 40] * 40
    clips = recall.draw_clips(64, apart, others, clip_generator(0, "test", 0))
    frames = clips.log_mel.unflatten(1, (64, 2))
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    tokens = frames[:, :, 0]
    tones = tokens[..., : recall.MARK].unflatten(2, (recall.CLASSES, 2)).all(3)
    assert (tones.sum(2) <= 1).all() and set(tokens.unique().tolist()) == {0.0, recall.LOUD}
    marks, questions = (tokens[..., place].bool() for place in (recall.MARK, recall.QUESTION))
    assert torch.equal(marks.sum(1), questions.sum(1)) and (marks.sum(1) > 1).any() == bool(others)
    asked = torch.zeros_like(questions)
    asked[clips.clips, clips.questions] = True
    assert torch.equal(asked, questions)
    for clip, question, answer in zip(clips.clips, clips.questions, clips.answers, strict=True):
        last = int(torch.nonzero(marks[clip, :question]).max())
        assert int(question) - last in (4, 16, 40) and not questions[clip, last:question].any()
        assert tones[clip, last].nonzero().flatten().tolist() == [int(answer)]
        assert not tones[clip, question].any()  # the question says nothing
    first = recall.first_questions(clips)
    assert first.clips.tolist() == list(range(120)) and first.log_mel is clips.log_mel
    for clip, question in enumerate(first.questions):
        assert int(question) - int(torch.nonzero(marks[clip, :question]).max()) == apart[clip]
    assert len(clips.answers.unique()) == recall.CLASSES


def test_what_is_not_marked_comes_up_now_and_then(recall: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "NOISE", 0.0)
    tokens = recall.draw_clips(64, [4] * 100, (), clip_generator(0, "test", 0)).log_mel[:, ::2]
    heard = tokens[..., : recall.MARK].any(2).float().mean()
    assert float(heard) == pytest.approx(1 / 16 + 1 / 64, abs=0.01)


def test_held_out_clips_are_the_same_for_every_run_and_no_training_clips(recall: Any) -> None:
    task = recall.Task(64, (4, 16), 2, 4)
    first, again = (recall.held_out(task, 16, "test", 130) for _ in range(2))
    assert [len(part.answers) for part in first] == [50, 50, 30]
    assert all(torch.equal(one.log_mel, other.log_mel) for one, other in zip(first, again, strict=True))
    other = recall.held_out(task, 16, "validation", 50)[0]
    assert not torch.equal(first[0].log_mel, other.log_mel) and not torch.equal(first[0].log_mel, first[1].log_mel)


def answers_of(recall: Any, task: Any, kind: str, count: int) -> dict[str, list[int]]:
    return {
        str(distance): torch.cat([part.answers for part in recall.held_out(task, distance, kind, count)]).tolist()
        for distance in task.distances
    }


def test_rates_are_chosen_on_validation_clips_and_scores_are_of_test_clips(recall: Any) -> None:
    task = recall.Task(64, (4, 16), 2, 4)
    right, tuned = answers_of(recall, task, "test", 30), answers_of(recall, task, "validation", 20)
    wrong, half = ({name: [(one + 1) % 8 for one in said] for name, said in held.items()} for held in (tuned, right))
    half["4"] = right["4"]
    runs = [
        {"encoder": "bilstm", "rate": rate, "seed": seed, "said": said}
        for rate, seed, said in (
            (1e-3, recall.TUNING_SEED, wrong),
            (3e-3, recall.TUNING_SEED, tuned),
            (3e-3, 0, right),
            (3e-3, 1, half),
            (1e-3, 0, half),
        )
    ]
    assert recall.chosen_rate(task, runs, "bilstm") == 3e-3
    scores = recall.scores_of(task, runs)
    assert scores.keys() == {"bilstm"}
    assert scores["bilstm"][4].value == 1 and scores["bilstm"][16].value == 0.5  # of two seeds, with that rate
    assert scores["bilstm"][16].low < 0.5 < scores["bilstm"][16].high


def test_it_answers_at_the_questions_token(recall: Any) -> None:
    torch.manual_seed(0)
    model, clips = recall.make_model("ssast", 32), recall.draw_clips(32, [4, 9], (), clip_generator(0, "test", 0))
    torch.nn.init.normal_(model.head[1].weight)
    tokens = model.encoder(clips.log_mel).tokens
    for clip, question in enumerate(clips.questions):
        wanted = model.head(tokens[clip, question])
        torch.testing.assert_close(recall.answer(model, clips)[clip], wanted, rtol=1e-4, atol=1e-5)


SMALL = ["--tokens", 32, "--distances", 4, 16, "--steps", 2, "--batch", 2, "--rates", 1e-3, 3e-3]


def test_runs_are_kept_and_the_tables_are_made_of_them(
    recall: Any, benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "recall"
    words = [out, "--encoders", "bilstm", "conformer", *SMALL]
    call(recall, monkeypatch, *words, "--seeds", 1)
    first = json.loads((out / "results.json").read_text())["runs"]
    assert [(run["encoder"], run["seed"]) for run in first] == [
        ("bilstm", 1000),
        ("bilstm", 1000),
        ("conformer", 1000),
        ("conformer", 1000),
        ("bilstm", 0),
        ("conformer", 0),
    ]
    assert {len(said) for run in first[:4] for said in run["said"].values()} == {20}
    assert all(len(said) == 30 and set(said) <= set(range(8)) for run in first[4:] for said in run["said"].values())
    text = capsys.readouterr().out
    assert "| chance    |" in text and "0.125" in text and text.strip() == (out / "results.md").read_text().strip()
    assert (out / "recall.png").read_bytes().startswith(b"\x89PNG")
    # Another seed: what there is stays, and is not made again.
    call(recall, monkeypatch, *words, "--seeds", 2)
    again = json.loads((out / "results.json").read_text())["runs"]
    assert again[:6] == first and [(run["encoder"], run["seed"]) for run in again[6:]] == [
        ("bilstm", 1),
        ("conformer", 1),
    ]
    with pytest.raises(SystemExit):
        call(recall, monkeypatch, *words, "--seeds", 2, "--steps", 3)
    assert "is of another task" in capsys.readouterr().err

    # The claims, of these and of points by formulas.
    for threads in (1, 2):
        points = [
            Measured(kind, "tiny", passes, 1, tokens, "done", 600.0, None, [tokens**power / speed], 2**20 * tokens)
            for kind in KINDS
            if kind != "aum"
            for power, speed in [(2 if kind.startswith("ssast") else 1, threads if kind != "bilstm" else 1)]
            for passes in PASSES
            for tokens in (8, 16, 32, 64)
        ]
        folder = tmp_path / f"threads{threads}"
        folder.mkdir()
        Record({"threads": threads}, points).write(folder, made={"command": ["ssamba", f"--threads={threads}"]})
    claims, page = benchmark("claims"), tmp_path / "claims.md"
    call(
        claims,
        monkeypatch,
        "--efficiency",
        tmp_path / "threads2",
        tmp_path / "threads1",
        "--recall",
        out,
        "--out",
        page,
        "--tokens",
        40,
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text().splitlines()
        if line.startswith("| ")
    ]
    assert rows[0] == ["claim", "measured", "Audio Mamba", "transformer, Conformer", "RNN", "made by"]
    by_claim = {(row[0], row[1].split(",")[0]): row[2:] for row in rows[1:]}
    time_row = by_claim["complexity", "power of the tokens that the time of a step grows with"]
    assert time_row[0] == "ssamba 1.00 [1.00, 1.00]; aum not measured"
    assert time_row[1].startswith("ssast 2.00 [2.00, 2.00]; ssast-plain 2.00 [2.00, 2.00]; conformer 1.00")
    assert time_row[3] == "`ssamba --threads=2`"
    step = by_claim["efficiency", "a step at 40 tokens"]
    assert step[0] == "ssamba 16 s, 32 MiB at 32, up to 64 tokens; aum not measured"
    parallel = by_claim["parallelism", "1 to 2 threads: times as fast; what waits"]
    assert parallel[0].startswith("ssamba 2.00 at 64 tokens; aum not measured; a scan")
    assert parallel[2] == "bilstm 1.00 at 64 tokens; each token waits for the one before"
    assert parallel[3] == "`ssamba --threads=2`, `ssamba --threads=1`"
    far = by_claim["long dependencies", "a marked event told 16 tokens later"]
    task = recall.Task(32, (4, 16), 2, 2)
    assert far[2] == f"bilstm {recall.scores_of(task, again)['bilstm'][16]}"
    assert far[0] == "ssamba not measured; aum not measured" and "ssast-plain" not in far[1]
