"""Long dependencies: which class a marked event had, asked so many tokens later, by every encoder on one budget.

    python benchmarks/recall.py OUT [--encoders ...] [--tokens 2048] [--distances 4 16 64 256 1024 1920] [--steps 600]
                                    [--batch 4] [--rates 3e-4 1e-3 3e-3] [--seeds 3] [--jobs 1]

A clip is a row of tokens of 20 ms: noise, in which tones of 8 classes come up now and then. One of them is marked, and
so many tokens later there is a question: the answer, given at the question's token, is the class of the tone that was
marked last. Between them lie tones that are not marked, before and after them as many shorter pairs of a mark and a
question as there is room for, and nothing near a question tells its answer. The distance of the first pair of a clip is
one of those asked for by chance. In training all questions of a clip count; for each distance accuracy is that of the
first pair's question in 200 test clips, beside chance.

All encoders have the size nano, so about as many parameters, and learn from the same clips in as many steps, from
scratch. Each one's learning rate is chosen among --rates on validation clips, with a seed of its own; then each of
--seeds is trained with that rate and the test clips are answered once.

OUT/results.json keeps every run that is finished; called again, the command goes on with the others, --jobs of them at
a time, each with one thread. OUT/results.md and OUT/recall.png are made of them.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ssamba.config import ENCODERS
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import Interval, Scored, mean_intervals
from ssamba.evaluation.tables import markdown_table
from ssamba.files import read_json, write_json, write_text, written_beside
from ssamba.jobs import processes, run_jobs
from ssamba.masking import clip_generator
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import TokenClassifier, parameter_count
from ssamba.progress import progress_bar
from ssamba.schedules import parameter_groups, warmup_then_cosine
from ssamba.training.runs import command_record

CLASSES = 8
BINS = 2 * CLASSES + 4  # two of each class, of the mark and of the question
MARK, QUESTION = 2 * CLASSES, 2 * CLASSES + 2
FRAMES = 2  # of a token
LOUD, NOISE, OTHERS = 3.0, 0.3, 1 / 16  # how loud a tone is, the noise's deviation, how often a tone comes up
LONGEST_GAP = 8  # tokens before a pair that fills up a training clip
TEST_CLIPS, VALIDATION_CLIPS = 200, 50  # of each distance
AT_ONCE = 50  # clips that are answered at a time
TUNING_SEED = 1000
WARMUP_STEPS, WEIGHT_DECAY, GRADIENT_CLIP = 50, 0.01, 1.0


class Clips(NamedTuple):
    """log_mel: (B, T, M). Of each question its clip, its token and its answer: int64 (Q,)."""

    log_mel: Tensor
    clips: Tensor
    questions: Tensor
    answers: Tensor


class Task(NamedTuple):
    """What all runs have in common: tokens of a clip, distances from the marked one to the question, steps, clips of a
    step."""

    tokens: int
    distances: tuple[int, ...]
    steps: int
    batch: int


class Run(NamedTuple):
    """What is trained."""

    encoder: str
    rate: float
    seed: int


def draw_pairs(tokens: int, distance: int, others: Sequence[int], generator: torch.Generator) -> list[tuple[int, int]]:
    """Places of a marked tone and of its question, a pair at that distance and, in the room before and after it, pairs
    at `others` that fit. None lies within another."""

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    marked = below(tokens - distance)
    pairs = [(marked, marked + distance)]
    for place, end in ((0, marked), (marked + distance + 1, tokens)):
        while fitting := [other for other in others if place + other < end]:
            chosen = fitting[below(len(fitting))]
            place += below(min(LONGEST_GAP, end - place - chosen))
            pairs.append((place, place + chosen))
            place += chosen + 1
    return pairs


def draw_clips(tokens: int, distances: Sequence[int], others: Sequence[int], generator: torch.Generator) -> Clips:
    """A clip for each distance, as `draw_pairs` has it; the question of that pair is the first of its clip's."""
    batch = len(distances)
    pairs = [
        (clip, *pair)
        for clip, distance in enumerate(distances)
        for pair in draw_pairs(tokens, distance, others, generator)
    ]
    clips, marked, questions = torch.tensor(pairs).unbind(1)
    log_mel = NOISE * torch.randn(batch, tokens, BINS, generator=generator)
    classes = torch.randint(CLASSES, (batch, tokens), generator=generator)
    heard = torch.rand(batch, tokens, generator=generator) < OTHERS
    heard[clips, marked], heard[clips, questions] = True, False
    log_mel[..., :MARK] += LOUD * F.one_hot(classes, CLASSES).repeat_interleave(2, 2) * heard.unsqueeze(2)
    log_mel[clips, marked, MARK:QUESTION] += LOUD
    log_mel[clips, questions, QUESTION:] += LOUD
    return Clips(log_mel.repeat_interleave(FRAMES, 1), clips, questions, classes[clips, marked])


def first_questions(clips: Clips) -> Clips:
    """The same clips, of each the first question alone."""
    first = torch.cat([clips.clips.new_ones(1, dtype=torch.bool), clips.clips[1:] != clips.clips[:-1]])
    return Clips(clips.log_mel, clips.clips[first], clips.questions[first], clips.answers[first])


def make_model(encoder: str, tokens: int) -> TokenClassifier:
    """It answers at every token."""
    options = dict(SIZES[encoder]["nano"])
    if "residual" in options:
        options["residual"] = "plain"  # as new models have it
    body = AudioEncoder(encoder, options, BINS, FRAMES * tokens, BINS, FRAMES, BINS, FRAMES)
    return TokenClassifier(body, CLASSES, "mean", hop_columns=1)


def answer(model: TokenClassifier, clips: Clips) -> Tensor:
    """The logits at the questions, (Q, C)."""
    logits: Tensor = model(clips.log_mel)[clips.clips, clips.questions]
    return logits


def held_out(task: Task, distance: int, kind: str, count: int) -> list[Clips]:
    """The same clips for every run, with a question each, in batches."""
    sizes = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
    return [
        first_questions(
            draw_clips(task.tokens, [distance] * size, task.distances, clip_generator(distance, kind, place))
        )
        for place, size in enumerate(sizes)
    ]


@functools.cache
def right_answers(task: Task, distance: int, kind: str, count: int) -> Tensor:
    """Of those clips, int64 (count,)."""
    return torch.cat([clips.answers for clips in held_out(task, distance, kind, count)])


def train(run: Run, task: Task) -> dict[str, Any]:
    """A run, as results.json has it. said: of each distance the classes that it answered, of the validation clips by
    the seed that is for choosing, else of the test clips."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    model = make_model(run.encoder, task.tokens)
    optimizer = torch.optim.AdamW(parameter_groups(model, run.rate, WEIGHT_DECAY))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(WARMUP_STEPS, task.steps, 0.0))
    losses, began = [], time.process_time()
    for step in range(task.steps):
        generator = clip_generator(run.seed, "recall", step)
        chosen = torch.randint(len(task.distances), (task.batch,), generator=generator).tolist()
        clips = draw_clips(task.tokens, [task.distances[place] for place in chosen], task.distances, generator)
        loss = F.cross_entropy(answer(model, clips), clips.answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    seconds = time.process_time() - began
    kind, count = ("validation", VALIDATION_CLIPS) if run.seed == TUNING_SEED else ("test", TEST_CLIPS)
    model.eval()
    said = {}
    with torch.inference_mode():
        for distance in task.distances:
            parts = held_out(task, distance, kind, count)
            said[str(distance)] = torch.cat([answer(model, clips).argmax(1) for clips in parts]).tolist()
    last = losses[-max(1, task.steps // 20) :]
    return {**run._asdict(), "said": said, "loss": sum(last) / len(last), "cpu_seconds": round(seconds, 1)}


def predictions(task: Task, run: dict[str, Any], distance: int) -> Predictions:
    """What a run said of the test clips of a distance."""
    said = torch.tensor(run["said"][str(distance)])
    labels = right_answers(task, distance, "test", TEST_CLIPS)
    return Predictions(list(map(str, range(len(said)))), F.one_hot(said, CLASSES).float(), labels)


def accuracy(task: Task, runs: Sequence[dict[str, Any]], distance: int) -> Interval:
    """The mean over runs of one encoder, its interval that of drawing runs and clips."""
    return mean_intervals([Scored(predictions(task, run, distance)) for run in runs])["accuracy"]


def chosen_rate(task: Task, runs: Sequence[dict[str, Any]], encoder: str) -> float:
    """The rate with the best mean accuracy over all distances of the validation clips."""

    def score(run: dict[str, Any]) -> float:
        right = 0
        for distance in task.distances:
            labels = right_answers(task, distance, "validation", VALIDATION_CLIPS)
            right += int((torch.tensor(run["said"][str(distance)]) == labels).sum())
        return right

    tuned = [run for run in runs if run["encoder"] == encoder and run["seed"] == TUNING_SEED]
    return float(max(tuned, key=score)["rate"])


Scores = dict[str, dict[int, Interval]]
"""Encoder -> distance -> accuracy."""


def scores_of(task: Task, runs: Sequence[dict[str, Any]]) -> Scores:
    """Of the test clips, by all seeds."""
    return {
        name: {distance: accuracy(task, own, distance) for distance in task.distances}
        for name in ENCODERS
        if (own := tested(task, runs, name))
    }


def tested(task: Task, runs: Sequence[dict[str, Any]], encoder: str) -> list[dict[str, Any]]:
    """The runs of an encoder that answered the test clips, with the rate that was chosen."""
    own = [run for run in runs if run["encoder"] == encoder and run["seed"] != TUNING_SEED]
    return [run for run in own if run["rate"] == chosen_rate(task, runs, encoder)]


def report(task: Task, runs: Sequence[dict[str, Any]], made: dict[str, Any]) -> str:
    """results.md."""
    rows: list[tuple[str, ...]] = [("encoder", "parameters", "rate", *map(str, task.distances))]
    for encoder, found in scores_of(task, runs).items():
        parameters, rate = parameter_count(make_model(encoder, task.tokens)), chosen_rate(task, runs, encoder)
        rows.append((encoder, f"{parameters:,}", f"{rate:g}", *map(str, found.values())))
    rows.append(("chance", "", "", *[f"{1 / CLASSES:.3f}"] * len(task.distances)))
    seeds = len({run["seed"] for run in runs} - {TUNING_SEED})
    lines = [
        "# Recall of a marked event, by the tokens since then",
        f"Accuracy of {TEST_CLIPS} test clips of {task.tokens} tokens at each distance, with 95 % intervals over clips "
        f"and {seeds} seeds; {task.steps} steps of {task.batch} clips, as many for all. "
        f"`{' '.join(made['command'])}`, {made['hardware']['processor']}.",
        markdown_table(rows),
    ]
    return "\n\n".join(lines) + "\n"


def draw(path: Path, scores: Scores) -> None:
    """Accuracy by distance."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, (encoder, found) in enumerate(scores.items()):
        distances = [distance * 1.03 ** (number - 2) for distance in found]  # so that intervals stand side by side
        values = [one.value for one in found.values()]
        ends = [
            [max(0.0, one.value - one.low) for one in found.values()],
            [max(0.0, one.high - one.value) for one in found.values()],
        ]
        axis.errorbar(distances, values, ends, marker="o", markersize=4, capsize=3, label=encoder)
    axis.axhline(1 / CLASSES, color="grey", linestyle=":", label="chance")
    axis.set(xscale="log", xlabel="tokens from the event to the question", ylabel="accuracy", ylim=(0, 1.02))
    axis.set_xticks(list(next(iter(scores.values()))), [f"{distance:,}" for distance in next(iter(scores.values()))])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    for name, default in (("tokens", 2048), ("steps", 600), ("batch", 4), ("seeds", 3), ("jobs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--distances", type=int, nargs="+", default=[4, 16, 64, 256, 1024, 1920])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    given = parser.parse_args()
    task = Task(given.tokens, tuple(sorted(set(given.distances))), given.steps, given.batch)
    if not 0 < task.distances[0] <= task.distances[-1] < task.tokens:
        parser.error(f"--distances are {task.distances}; expected 1 to below --tokens, {task.tokens}")
    results, runs = given.out / "results.json", list[dict[str, Any]]()
    given.out.mkdir(parents=True, exist_ok=True)
    if results.exists():
        held = read_json(results, dict[str, Any], "what this script writes, or another OUT")
        if held["task"] != {**task._asdict(), "distances": list(task.distances)}:
            parser.error(f"{results} is of another task, {held['task']}; give another OUT")
        runs = held["runs"]

    def make(wanted: Sequence[Run], desc: str) -> None:
        done = [Run(*(run[name] for name in Run._fields)) for run in runs]
        missing = [run for run in wanted if run not in done]
        with (
            processes(given.jobs) as executor,
            progress_bar(len(wanted), "run", desc, initial=len(wanted) - len(missing)) as bar,
        ):
            for _, made in run_jobs(functools.partial(train, task=task), missing, executor):
                runs.append(made)
                write_json(results, {"task": task._asdict(), "runs": runs, "made": command_record()})
                bar.update()

    make([Run(*one, TUNING_SEED) for one in itertools.product(given.encoders, given.rates)], "choosing rates")
    rates = {encoder: chosen_rate(task, runs, encoder) for encoder in given.encoders}
    make([Run(one, rates[one], seed) for seed in range(given.seeds) for one in given.encoders], "seeds")
    text = report(task, runs, command_record())
    write_text(given.out / "results.md", text)
    draw(given.out / "recall.png", scores_of(task, runs))
    print(text)


if __name__ == "__main__":
    main()
