"""Clips that are heard mixed while both sources stay the target, against descriptions written out here."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.audio import LogMel, samples_for
from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import PretrainRecipe, load_recipe
from ssamba.data.batches import Batch
from ssamba.masking import clip_generator
from ssamba.models.patches import gather_patches
from ssamba.objectives import Targets, draw_partners, mixed_with, retained
from ssamba.training.pretraining import Pretraining

Recipes = dict[str, Path]
RATE, SCALE = 16000, 8.0
TAUGHT = [
    "objective.parts.contrastive=0.5",
    "objective.parts.reconstruction=2",
    "objective.parts.latent=1",
    "objective.parts.clip=1",
]


def build(recipes: Recipes, *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    assert isinstance(recipe, PretrainRecipe)
    built = build_pretrainer(recipe)
    built.module.seen = []
    built.module.watch = lambda keys, **values: built.module.seen.append(values)
    return built


def generators(positions: range, seed: int = 0) -> list[torch.Generator]:
    return [clip_generator(seed, "mix", position) for position in positions]


# Who is mixed with whom


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_so_many_clips_are_mixed_with_others_all_equally_likely(chance: float) -> None:
    partners = torch.stack([draw_partners(chance, generators(range(5 * n, 5 * n + 5))) for n in range(4000)])
    mixed = partners != torch.arange(5)
    assert mixed.float().mean().item() == pytest.approx(chance, abs=0.015)
    assert partners.min() >= 0 and partners.max() <= 4
    for clip in range(5):
        for other in set(range(5)) - {clip}:
            assert (partners[:, clip] == other).float().mean().item() == pytest.approx(chance / 4, abs=0.025)


def test_a_clips_draw_is_its_own() -> None:
    """By the seed and its place in the order: neither by what was drawn before nor by which clips stand beside it."""
    first = draw_partners(0.5, generators(range(40)))
    torch.rand(7)
    assert torch.equal(first, draw_partners(0.5, generators(range(40))))
    changed = [clip_generator(0, "mix", position if position == 3 else position + 1000) for position in range(40)]
    assert draw_partners(0.5, changed)[3] == first[3]
    assert not torch.equal(first, draw_partners(0.5, generators(range(40), seed=1)))


def test_one_clip_alone_is_left_as_it_is() -> None:
    assert draw_partners(1.0, generators(range(1))).tolist() == [0]


# What is heard


def test_powers_are_added_and_padding_has_none() -> None:
    clips = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    frames, partners = torch.tensor([6, 2, 4, 3]), torch.tensor([1, 3, 2, 0])
    heard = mixed_with(clips, frames, partners, SCALE)
    assert heard.partners is partners
    wanted = clips.clone()
    for clip, partner in ((0, 1), (1, 3), (3, 0)):
        for frame in range(6):
            for band in range(3):
                sources = [float(clips[one, frame, band]) for one in (clip, partner) if frame < frames[one]]
                if sources:
                    powers = sum(math.exp(SCALE * value) for value in sources)
                    wanted[clip, frame, band] = math.log(powers) / SCALE
    torch.testing.assert_close(heard.log_mel, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(heard.log_mel[2], clips[2])


def test_a_mixture_of_spectrograms_is_on_average_the_spectrogram_of_the_sum() -> None:
    """Of two noises, one of them 6 dB softer: the energies of x + y are those of the mixture, but for the phases."""
    generator = torch.Generator().manual_seed(0)
    samples = samples_for(1000, RATE)
    sounds = torch.randn(2, samples, generator=generator) * torch.tensor([[0.2], [0.1]])
    log_mel = LogMel(RATE, 16, -4.0, 4.0)
    lengths = torch.full((2,), samples)
    mixed = mixed_with(log_mel(sounds, lengths), log_mel.frames(lengths), torch.tensor([1, 0]), 8.0).log_mel
    added = log_mel(sounds.sum(0, keepdim=True), lengths[:1])

    def energies(spectrogram: Tensor) -> Tensor:
        return (spectrogram.double() * 8 - 4).exp().mean(1)

    torch.testing.assert_close(energies(mixed[:1]), energies(added), rtol=0.06, atol=0)
    torch.testing.assert_close(mixed[0], mixed[1])


# What is to be said of it


@pytest.mark.parametrize("padded", [False, True])
def test_targets_are_the_mean_of_those_of_both_sources(padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    patches, clips = torch.randn(3, 4, 2, generator=generator), torch.randn(3, 2, generator=generator)
    targets = Targets(patches, clips, torch.tensor(0.3))
    partners = torch.tensor([1, 1, 0])
    own = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool() if padded else None
    told = retained(targets, partners, own)
    heard = torch.ones(3, 4, dtype=torch.bool) if own is None else own
    for clip, partner in ((0, 1), (1, 1), (2, 0)):
        torch.testing.assert_close(told.clips[clip], (clips[clip] + clips[partner]) / 2)
        for patch in range(4):
            sources = [patches[one, patch] for one in (clip, partner) if heard[one, patch]]
            if sources:
                torch.testing.assert_close(told.patches[clip, patch], torch.stack(sources).mean(0))
    assert torch.equal(told.patches[1, :2], patches[1, :2]) and torch.equal(told.clips[1], clips[1])
    assert told.spread is targets.spread


# A step


def batch_of(lengths: list[int]) -> Batch:
    samples = samples_for(64, RATE)
    own = torch.tensor(lengths).unsqueeze(1)
    waveform = 0.1 * torch.randn(len(lengths), samples, generator=torch.Generator().manual_seed(3))
    waveform = waveform.where(torch.arange(samples) < own, 0.0)
    keys = [f"clip {number}" for number in range(len(lengths))]
    return {
        "waveform": waveform,
        "lengths": torch.tensor(lengths),
        "labels": torch.empty(0),
        "keys": keys,
        "positions": list(range(20, 20 + len(lengths))),
        "consumed": len(lengths),
        "skipped": [],
    }


@pytest.mark.parametrize(("short", "encode"), [("pad", "all"), ("pad", "visible"), ("repeat", "all")])
def test_a_step_hears_mixtures_and_is_told_of_their_sources(short: str, encode: str, recipes: Recipes) -> None:
    words = [f"data.short={short}", f"model.encode={encode}", "objective.mix=0.9", "mask.per_clip=2"]
    module = build(recipes, *words, *TAUGHT).module.eval()
    samples = samples_for(64, RATE)
    batch = batch_of([3 * samples // 4, 3 * samples // 8, samples // 2] if short == "pad" else [samples] * 3)
    masks: list[tuple[Tensor, Tensor]] = []
    draw = module.draw_mask

    def watched(purpose: str, positions: Any, lengths: Tensor, count: int) -> Tensor:
        mask: Tensor = draw(purpose, positions, lengths, count)
        masks.append((lengths, mask))
        return mask

    module.draw_mask = watched
    loss = module.training_step(batch, 0)
    ((lengths, mask),), (values,) = masks, module.seen

    clips, own_lengths = module.log_mel(batch["waveform"], batch["lengths"]), batch["lengths"]
    partners = draw_partners(0.9, [clip_generator(0, "mix", position) for position in batch["positions"]])
    assert (partners != torch.arange(3)).any()
    assert lengths.tolist() == [max(int(own_lengths[a]), int(own_lengths[b])) for a, b in enumerate(partners)]
    heard = mixed_with(clips, module.log_mel.frames(own_lengths), partners, 8.0).log_mel
    own = both = views = None
    if short == "pad":
        columns = [-(-((int(length) - 400) // 160 + 1) // 16) for length in own_lengths]
        own = torch.tensor([[column < count for column in range(4)] * 8 for count in columns])
        # Nothing is hidden where both sources are padding.
        both = own | own[partners]
        views = both.repeat_interleave(2, 0)
        assert not (mask & ~views).any()
    said = module.model(heard.repeat_interleave(2, 0), mask, module.masking.masked, views)
    told = retained(module.teacher(clips, own), partners, own)
    errors = (said.more["latent"] - gather_patches(told.patches.repeat_interleave(2, 0), said.places)).square().mean(2)
    counted = torch.ones_like(errors) if said.hidden is None else said.hidden.float()
    torch.testing.assert_close(values["latent"], (errors * counted).sum() / counted.sum())
    expected = (said.more["clip"] - told.clips.repeat_interleave(2, 0)).square().mean()
    torch.testing.assert_close(values["clip"], expected)
    # The parts without a teacher are of what is heard.
    parts = module.objectives(heard, mask, None, both)
    for name in ("contrastive", "accuracy", "reconstruction"):
        torch.testing.assert_close(values[name], parts[name])
    wanted = 0.5 * values["contrastive"] + 2 * values["reconstruction"] + values["latent"] + values["clip"]
    torch.testing.assert_close(loss, wanted)


def test_validation_mixes_nothing(recipes: Recipes) -> None:
    def scores(*words: str) -> dict[str, Tensor]:
        module = build(recipes, *TAUGHT, *words).module.eval()
        objectives, told = module.objectives, []
        module.objectives = lambda *arguments: told.append(objectives(*arguments)) or told[-1]
        module.validation_step(batch_of([samples_for(64, RATE)] * 3), 0)
        (values,) = told
        return values

    plain, mixing = scores(), scores("objective.mix=1")
    assert all(torch.equal(plain[name], mixing[name]) for name in plain)


def test_a_chance_of_none_is_no_mixing(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    mixtures: list[object] = []
    objectives = Pretraining.objectives

    def spy(self: Pretraining, *arguments: Any) -> dict[str, Tensor]:
        mixtures.append(arguments[4])
        return objectives(self, *arguments)

    monkeypatch.setattr(Pretraining, "objectives", spy)
    build(recipes).module.training_step(batch_of([samples_for(64, RATE)] * 3), 0)
    assert mixtures == [None]


def test_a_run_mixes_the_same_with_other_workers(recipes: Recipes, tmp_path: Path) -> None:
    words = ["objective.mix=0.5", "objective.parts.latent=1", "data.validation=[]", "trainer.max_steps=3"]
    weights = []
    for name, more in (("here", []), ("workers", ["data.num_workers=2"]), ("plain", ["objective.mix=0"])):
        folder = tmp_path / name
        assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={folder}", *words, *more]) == 0
        weights.append((folder / "model" / "model.safetensors").read_bytes())
    here, workers, plain = weights
    assert here == workers != plain


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["objective.mix=1.5"], "objective.mix is 1.5; expected at least 0 and at most 1"),
        (
            ["objective.mix=0.5", "trainer.accumulate=4"],
            "objective.mix is 0.5, and each device takes 1 clip at a time of data.batch_size 4; expected 2 at least",
        ),
    ],
)
def test_a_mistake_is_told(words: list[str], told: str, recipes: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(recipes["pretrain"]), "run_dir=unused", *words]) == 2
    assert told in capsys.readouterr().err
