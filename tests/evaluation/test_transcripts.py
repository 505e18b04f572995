"""Speech to text: decoding against every path, rates of errors against a table of distances."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch

from ssamba.evaluation.transcripts import HAS_BEAM_SEARCH, beam_search, count_errors, greedy, spell

NAMES = ("<blank>", " ", "a", "b")


def collapsed(path: Sequence[int]) -> tuple[int, ...]:
    return tuple(number for number, _ in itertools.groupby(path) if number)


def distance(said: Sequence[str], true: Sequence[str]) -> int:
    """Levenshtein's, by its table."""
    row = list(range(len(true) + 1))
    for count, one in enumerate(said, 1):
        before, row = row, [count]
        for place, other in enumerate(true):
            row.append(min(before[place] + (one != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def test_greedy_joins_repetitions_and_drops_blanks() -> None:
    path = torch.tensor([[2, 2, 0, 2, 1, 3, 3], [0, 0, 3, 2, 2, 2, 2]])
    logits = torch.eye(4)[path]
    found = greedy(logits, torch.tensor([7, 4]))
    assert found == [[2, 2, 1, 3], [3, 2]] and spell(found[0], NAMES) == "aa b"
    assert greedy(logits[:1] * 0 + torch.eye(4)[0], torch.tensor([7])) == [[]]


@pytest.mark.skipif(not HAS_BEAM_SEARCH, reason="flashlight-text is not installed")
def test_beam_search_finds_the_likeliest_text() -> None:
    """Summed over all paths that spell it, where the likeliest path alone spells another."""
    generator = torch.Generator().manual_seed(0)
    differ = 0
    for _ in range(20):
        logits = torch.randn(1, 5, 4, generator=generator)
        chances = logits.softmax(2)[0]
        texts: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(4), repeat=5):
            chance = math.prod(float(chances[hop, number]) for hop, number in enumerate(path))
            texts[collapsed(path)] = texts.get(collapsed(path), 0.0) + chance
        (found,) = beam_search(logits, torch.tensor([5]), NAMES)
        likeliest = max(texts, key=lambda text: texts[text])
        greedily = tuple(greedy(logits, torch.tensor([5]))[0])
        differ += greedily != likeliest
        assert tuple(found) == likeliest
    assert differ


def test_error_rates_are_those_of_edit_distances() -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join("".join(rng.choice("abc") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 6)))

    true, said = [text() for _ in range(50)], [text() for _ in range(49)] + [""]
    errors = count_errors(said, true)
    words = [distance(one.split(), other.split()) for one, other in zip(said, true, strict=True)]
    letters = [distance(one, other) for one, other in zip(said, true, strict=True)]
    assert errors.word_edits.tolist() == words and errors.character_edits.tolist() == letters
    rates = errors.rates()
    assert rates["WER"] == pytest.approx(sum(words) / sum(len(one.split()) for one in true), abs=1e-9)
    assert rates["CER"] == pytest.approx(sum(letters) / sum(map(len, true)), abs=1e-9)
    intervals = errors.intervals()
    for name, value in rates.items():
        assert intervals[name].value == value and intervals[name].low < value < intervals[name].high
    assert errors.intervals() == intervals != errors.intervals(seed=1)


def test_what_has_no_length_has_no_rate() -> None:
    with pytest.raises(ValueError, match="empty"):
        count_errors(["a"], [" "])
    assert count_errors(["b"], ["a"]).rates() == {"WER": 1.0, "CER": 1.0}
    assert count_errors(["a b c"], ["a"]).rates() == {"WER": 2.0, "CER": 4.0}
