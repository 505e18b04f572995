"""Scores of a pretrained model against loops over clips and patches."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.audio import LogMel, samples_for
from ssamba.data.batches import Batch
from ssamba.evaluation.masked import SCORED_PARTS, MaskedEvaluation, MaskedScores, mean_patches, score_masked
from ssamba.masking import Masking, clip_generator
from ssamba.models.decoder import decoder_of
from ssamba.models.encoder import AudioEncoder
from ssamba.models.heads import MaskedPatchModel

RATE, BINS, FRAMES, SIDE, MASKED = 8000, 12, 24, 4, 7  # a grid of 3 x 6 patches
SAMPLES = samples_for(FRAMES, RATE)


class Clips:
    """Batches of given sizes; the last clip of each is half silence."""

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        places = 0
        for size in self.sizes:
            lengths = torch.full((size,), SAMPLES)
            lengths[-1] = SAMPLES // 2
            waveform = 0.1 * torch.randn(size, SAMPLES, generator=generator)
            waveform[-1, SAMPLES // 2 :] = 0
            first, places = places, places + size
            yield Batch(
                waveform=waveform,
                lengths=lengths,
                labels=torch.empty(0),
                keys=["clip"] * size,
                positions=list(range(first, places)),
                consumed=places,
                skipped=[],
            )


@pytest.fixture(scope="module", params=["all", "visible"])
def evaluation(request: pytest.FixtureRequest) -> MaskedEvaluation:
    """Of a model whose encoder gets all patches, and of one with a decoder."""
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
    encoder = AudioEncoder("ssast", options, BINS, FRAMES, SIDE, SIDE, SIDE, SIDE)
    model = MaskedPatchModel(encoder, decoder=decoder_of(encoder) if request.param == "visible" else None)
    train: Any = Clips([3, 3, 3], 1)
    held_out: Any = Clips([4, 2], 2)
    return MaskedEvaluation(
        model.eval(), LogMel(RATE, BINS, -5.0, 3.0), train, 6, held_out, Masking("cluster", MASKED), seed=5
    )


def cut(log_mel: Tensor) -> list[list[Tensor]]:
    """(T, M) -> a row of patches for each 4 mel bins, their pixels mel bin by mel bin."""
    return [
        [log_mel[t : t + SIDE, m : m + SIDE].T.flatten() for t in range(0, FRAMES, SIDE)] for m in range(0, BINS, SIDE)
    ]


def flat_patches(e: MaskedEvaluation, clips: Any) -> list[Tensor]:
    """Of each clip, (18, 16)."""
    return [
        torch.stack([patch for row in cut(spectrogram) for patch in row])
        for batch in clips
        for spectrogram in e.log_mel(batch["waveform"], batch["lengths"])
    ]


@pytest.mark.parametrize("clips", [1, 4, 6, 9])
def test_mean_patches_are_those_of_the_first_clips(evaluation: MaskedEvaluation, clips: int) -> None:
    wanted = torch.stack(flat_patches(evaluation, evaluation.train)[:clips]).mean(0)
    found = mean_patches(evaluation.model, evaluation.log_mel, evaluation.train, clips)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def by_hand(e: MaskedEvaluation) -> MaskedScores:
    """Every score, clip by clip and patch by patch."""
    mean = torch.stack(flat_patches(e, e.train)[:6]).mean(0)
    patches = flat_patches(e, e.validation)
    masks = e.masking.draw(3, 6, [clip_generator(e.seed, "evaluation", clip) for clip in range(6)])
    hits, contrastive, wrong, baseline, by_row = 0, 0.0, 0.0, 0.0, 0.0
    spectrograms = [s for batch in e.validation for s in e.log_mel(batch["waveform"], batch["lengths"])]
    for log_mel, mask, target in zip(spectrograms, masks, patches, strict=True):
        said = e.model(log_mel.unsqueeze(0), mask.unsqueeze(0))
        hidden = [i for i in range(18) if mask[i]]
        predicted, filled = said.contrastive[0], said.reconstruction[0]
        # Those that are the same, of padding here, are not told apart.
        scores = [
            [
                -math.inf
                if j != i and torch.equal(target[hidden[j]], target[hidden[i]])
                else float(target[hidden[i]] @ predicted[j])
                for j in range(MASKED)
            ]
            for i in range(MASKED)
        ]
        shares = [
            [math.exp(score - max(row)) / sum(math.exp(one - max(row)) for one in row) for score in row]
            for row in scores
        ]
        for j in range(MASKED):
            column = [shares[i][j] for i in range(MASKED)]
            hits += column.index(max(column)) == j
        contrastive += sum(-math.log(shares[i][i]) for i in range(MASKED))
        for place, i in enumerate(hidden):
            wrong += float((filled[place] - target[i]).square().mean())
            baseline += float((mean[i] - target[i]).square().mean())
            by_row += 1 / sum(other // 6 == i // 6 for other in hidden)
    count = 6 * MASKED
    return MaskedScores(
        hits / count,
        1 / MASKED,
        by_row / count,
        contrastive / count,
        wrong / count,
        baseline / count,
        wrong / baseline,
        6,
    )


def test_scores_by_brute_force(evaluation: MaskedEvaluation) -> None:
    assert score_masked(evaluation)._asdict() == pytest.approx(by_hand(evaluation)._asdict(), rel=1e-5)


@pytest.mark.parametrize("part", SCORED_PARTS)
def test_a_head_that_learned_nothing_has_no_scores(evaluation: MaskedEvaluation, part: str) -> None:
    whole, found = score_masked(evaluation)._asdict(), score_masked(evaluation._replace(parts=[part]))._asdict()
    told = {"contrastive": {"accuracy", "chance", "row_chance", "contrastive"}}
    told["reconstruction"] = {"mse", "mean_patch_mse", "mse_ratio"}
    assert {name for name, score in found.items() if score is not None} == told[part] | {"clips"}
    assert all(found[name] == whole[name] for name in told[part])


def test_the_same_masks_every_time(evaluation: MaskedEvaluation) -> None:
    assert score_masked(evaluation) == score_masked(evaluation)
    assert score_masked(evaluation) != score_masked(evaluation._replace(seed=6))


def test_row_chance_of_one_row_is_chance() -> None:
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
    model = MaskedPatchModel(AudioEncoder("ssast", options, BINS, FRAMES, BINS, 2, BINS, 2))
    clips: Any = Clips([2, 3], 0)
    mask = Masking("cluster", 5)
    scores = score_masked(MaskedEvaluation(model, LogMel(RATE, BINS, -5.0, 3.0), clips, 5, clips, mask, 0))
    assert scores.row_chance == pytest.approx(scores.chance) == pytest.approx(1 / 5)
