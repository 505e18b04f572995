"""Pools against a plain description of them; whom their gradients reach, and padding, which enters none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from plain_pools import plain_pool, pools_watched
from torch import Tensor

from ssamba.models.encoder import SIZES, AudioEncoder, Encoded
from ssamba.models.heads import AudioClassifier
from ssamba.models.patches import PatchShape
from ssamba.models.pools import POOLINGS, Pool, build_pool

ROWS, COLUMNS, WIDTH = 3, 7, 5
each_pool = pytest.mark.parametrize("name", POOLINGS)


def make(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Pool:
    torch.manual_seed(0)
    return build_pool(name, ROWS, WIDTH, **options).to(dtype)


def tokens(batch: int = 4, dtype: torch.dtype = torch.float32) -> Encoded:
    generator = torch.Generator().manual_seed(1)
    patches = 3 * torch.randn(batch, ROWS * COLUMNS, WIDTH, generator=generator) + 1
    return Encoded(patches.to(dtype), torch.randn(batch, 2, WIDTH, generator=generator).to(dtype))


def beyond(encoded: Encoded, columns: Tensor) -> Tensor:
    """Which tokens stand after a clip's own columns: bool (B, F * P, 1)."""
    places = torch.arange(COLUMNS).repeat(ROWS)
    return (places >= columns.unsqueeze(1)).unsqueeze(2)


# What each computes


@each_pool
@pytest.mark.parametrize("columns", [None, [1, 2, 3, 7], [7, 7, 7, 7], [5, 4, 6, 1]])
@pytest.mark.parametrize("segments", [1, 4, 10])
def test_a_pool_is_what_its_description_says(name: str, columns: list[int] | None, segments: int) -> None:
    """Segments are as many, fewer and more than the columns of a clip."""
    pool, encoded = make(name, torch.float64, segments=segments), tokens(dtype=torch.float64)
    found = pool(encoded, None if columns is None else torch.tensor(columns))
    assert found.dtype == torch.float64 and found.shape == (4, pool.size)
    np.testing.assert_allclose(found.detach(), plain_pool(pool, encoded, columns), rtol=1e-10, atol=1e-12)


@each_pool
def test_of_one_row_a_pool_is_what_its_description_says(name: str) -> None:
    pool, encoded = build_pool(name, 1, WIDTH), tokens()
    np.testing.assert_allclose(
        pool(encoded, torch.tensor([21, 2, 1, 9])).detach(),
        plain_pool(pool, encoded, [21, 2, 1, 9]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_clip_shorter_than_its_segments_gives_several_the_same_column() -> None:
    encoded = tokens(1)
    grid = encoded.tokens.unflatten(1, (ROWS, COLUMNS))[0]
    one, two = (make("segments")(encoded, torch.tensor([count])).unflatten(1, (4, ROWS, WIDTH))[0] for count in (1, 2))
    for segment in range(4):
        torch.testing.assert_close(one[segment], grid[:, 0])
        torch.testing.assert_close(two[segment], grid[:, segment // 2])


def test_segments_alone_hear_an_order() -> None:
    encoded = tokens()
    turned = Encoded(encoded.tokens.unflatten(1, (ROWS, COLUMNS)).flip(2).flatten(1, 2), encoded.class_tokens)
    for name in POOLINGS:
        pool = make(name)
        assert ((pool(encoded) - pool(turned)).abs().max() > 0.1) == (name == "segments")


def test_all_but_the_originals_pools_keep_rows_apart() -> None:
    encoded = tokens()
    lifted = encoded.tokens.unflatten(1, (ROWS, COLUMNS)).roll(1, 1).flatten(1, 2)
    for name in POOLINGS:
        pool = make(name)
        change = (pool(encoded) - pool(Encoded(lifted, encoded.class_tokens))).abs().max()
        assert (change > 0.1) == (name not in ("mean", "class"))


def test_attention_weighs_columns_by_what_is_in_them() -> None:
    """Scores of a hundred leave one column: its tokens are the mean, and nothing deviates."""
    pool, encoded = make("attentive"), tokens()
    with torch.no_grad():
        pool.attention[2].weight *= 1000
    means, deviations = pool(encoded).chunk(2, dim=1)
    grid = encoded.tokens.unflatten(1, (ROWS, COLUMNS)).transpose(1, 2).flatten(2)
    best = pool.attention(grid).squeeze(2).argmax(1)
    torch.testing.assert_close(means, grid[torch.arange(4), best], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deviations, torch.full_like(deviations, 1e-5**0.5), rtol=0, atol=0.1)
    assert len(set(best.tolist())) > 1


def test_wrong_names_and_numbers_are_errors_that_say_what_there_is() -> None:
    expected = "'max'; expected one of mean, class, rows, statistics, segments, attentive"
    with pytest.raises(ValueError, match=expected):
        build_pool("max", ROWS, WIDTH)
    with pytest.raises(ValueError, match="segments is 0; expected at least 1"):
        build_pool("segments", ROWS, WIDTH, 0)


# Number formats


@each_pool
def test_mixed_precision_sums_in_float32(name: str) -> None:
    """Of tokens far from 0, whose deviations would be rounding in bfloat16."""
    pool, encoded = make(name), Encoded(tokens().tokens / 100 + 30, tokens().class_tokens)
    columns = torch.tensor([7, 6, 5, 3])
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(encoded, columns)
    assert found.dtype == torch.float32
    # Attention is a network, and its weights have bfloat16's eight bits.
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if name == "attentive" else {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(found.detach(), plain_pool(pool, encoded, columns.tolist()), **tolerance)


@each_pool
def test_bfloat16_in_bfloat16_out(name: str) -> None:
    pool, encoded = make(name, torch.bfloat16), tokens(dtype=torch.bfloat16)
    columns = torch.tensor([7, 6, 5, 3])
    found = pool(encoded, columns)
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.detach().float(), plain_pool(pool, encoded, columns.tolist()), rtol=0.1, atol=0.1)


# Gradients


@pytest.mark.parametrize("name", ["rows", "segments", "statistics", "attentive"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    pool, encoded = make(name, torch.float64), tokens(2, torch.float64)
    columns = torch.tensor([7, 4])
    parameters = dict(pool.named_parameters())

    def pooled(patches: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(pool, named, (Encoded(patches, encoded.class_tokens), columns))

    inputs = encoded.tokens.requires_grad_(), *(parameter.detach().requires_grad_() for parameter in pool.parameters())
    assert torch.autograd.gradcheck(pooled, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["statistics", "attentive"])
def test_of_a_clip_that_does_not_change_the_gradients_are_finite(name: str) -> None:
    pool = make(name)
    still = torch.full((2, ROWS * COLUMNS, WIDTH), 0.7, requires_grad=True)
    vector = pool(Encoded(still, still[:, :1]), torch.tensor([7, 1]))
    torch.testing.assert_close(vector[:, pool.size // 2 :], torch.full((2, pool.size // 2), 1e-5**0.5))
    vector.square().sum().backward()
    assert still.grad is not None and still.grad.isfinite().all() and still.grad.any()


# Padding


@each_pool
def test_padding_changes_nothing_and_gets_no_gradient(name: str) -> None:
    pool, encoded, columns = make(name), tokens(), torch.tensor([7, 1, 4, 2])
    outside = beyond(encoded, columns)
    loud = torch.where(outside, 1e4, encoded.tokens).requires_grad_()
    found = pool(Encoded(loud, encoded.class_tokens), columns)
    assert torch.equal(found, pool(encoded, columns))
    if name != "class":
        found.square().sum().backward()
        assert loud.grad is not None and not (loud.grad * outside).any() and (loud.grad != 0).any(2).any(1).all()


@each_pool
def test_a_pool_of_the_originals_takes_padding_too(name: str) -> None:
    pool, encoded = make(name, padding=True), tokens()
    assert torch.equal(pool(encoded, torch.tensor([7, 1, 4, 2])), pool(encoded))
    if name == "mean":
        assert torch.equal(pool(encoded), encoded.tokens.mean(1))  # to the bit


@pytest.mark.parametrize(("tshape", "stride"), [(16, 16), (16, 10), (2, 2), (2, 1), (4, 6)])
def test_columns_of_a_clip_are_those_that_begin_in_it(tshape: int, stride: int) -> None:
    patch = PatchShape(8, tshape, 8, stride)
    columns = patch.grid(8, 64)[1]
    for frames in range(-3, 70):
        begun = sum(column * stride < frames for column in range(columns))
        assert int(patch.own_columns(torch.tensor([frames]), columns)) == max(1, begun)


def spectrograms(frames: list[int]) -> Tensor:
    """Of 48 frames, what follows a clip's own as loud as the rest."""
    return torch.randn(len(frames), 48, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def classifier() -> Callable[..., AudioClassifier]:
    def make(encoder: str, pooling: str, **options: Any) -> AudioClassifier:
        torch.manual_seed(0)
        sizes = {**SIZES[encoder]["nano"], "hidden_size": 24}
        sizes |= {"head_dim": 16} if "head_dim" in sizes else {}
        body = AudioEncoder(encoder, sizes, 32, 48, 8, 8, 8, 4)  # 4 rows of 11 overlapping columns
        return AudioClassifier(body, 5, pooling, **options)

    return make


@each_pool
@pytest.mark.parametrize("encoder", list(SIZES))
def test_a_classifier_pools_the_columns_of_its_clips(
    encoder: str, name: str, classifier: Callable[..., AudioClassifier]
) -> None:
    model, frames = classifier(encoder, name, segments=3), [48, 20, 3, 21]
    with pools_watched(model) as seen:
        logits = model(spectrograms(frames), torch.tensor(frames))
        model(spectrograms(frames))
    ((encoded, vector), (_, whole)) = seen
    for one, columns in ((vector, [11, 5, 1, 6]), (whole, None)):
        wanted = plain_pool(model.pool, encoded, columns)
        np.testing.assert_allclose(one.detach(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, model.head(vector))
    changed = (vector - whole).abs().amax(1)
    assert changed[0] < 1e-5 and (changed[1:] > 1e-3).all() if name != "class" else not changed.any()


@each_pool
def test_a_classifier_of_the_originals_pools_padding(name: str, classifier: Callable[..., AudioClassifier]) -> None:
    model, log_mel = classifier("ssast", name, pool_padding=True), spectrograms([48, 20])
    assert torch.equal(model(log_mel, torch.tensor([48, 20])), model(log_mel))
