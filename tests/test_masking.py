"""Masks: how many patches they hide, of what shape, how evenly, and from what they are drawn."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssamba.masking import Masking, clip_generator, cluster_mask, random_mask

Draw = Callable[[int, int, int, list[torch.Generator]], Tensor]
each_kind = pytest.mark.parametrize("draw", [random_mask, cluster_mask])
GRIDS = [(8, 64, 400), (8, 12, 40), (1, 50, 20), (12, 9, 107), (3, 3, 1), (2, 2, 3), (1, 2, 1)]


def generators(clips: int, seed: int = 0) -> list[torch.Generator]:
    return [clip_generator(seed, "test", clip) for clip in range(clips)]


@each_kind
@pytest.mark.parametrize(("frequency", "time", "masked"), GRIDS)
def test_exactly_so_many_patches_are_hidden_in_every_clip(draw: Draw, frequency: int, time: int, masked: int) -> None:
    mask = draw(frequency, time, masked, generators(20))
    assert mask.shape == (20, frequency * time) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [masked] * 20


@each_kind
def test_clips_differ_and_the_generator_alone_decides(draw: Draw) -> None:
    first = draw(8, 12, 40, generators(16, 5))
    assert len({tuple(clip.tolist()) for clip in first}) == 16
    torch.manual_seed(1)
    assert torch.equal(draw(8, 12, 40, generators(16, 5)), first)
    torch.manual_seed(2)
    assert torch.equal(draw(8, 12, 40, generators(16, 5)), first)
    assert not torch.equal(draw(8, 12, 40, generators(16, 6)), first)
    # Each clip's mask is its own, whatever others there are.
    assert torch.equal(draw(8, 12, 40, generators(16, 5)[3:7]), first[3:7])
    ongoing = generators(16, 5)
    assert torch.equal(draw(8, 12, 40, ongoing), first)
    assert not torch.equal(draw(8, 12, 40, ongoing), first)


def test_generators_depend_on_seed_purpose_and_position_alone() -> None:
    def drawn(seed: int, purpose: str, position: int) -> list[float]:
        return torch.rand(3, generator=clip_generator(seed, purpose, position)).tolist()

    asked = [(0, "train", 0), (1, "train", 0), (0, "train", 1), (0, "validation", 0)]
    first = {ask: drawn(*ask) for ask in asked}
    torch.manual_seed(3)
    assert first == {ask: drawn(*ask) for ask in asked}
    assert len({tuple(values) for values in first.values()}) == 4


@each_kind
@pytest.mark.parametrize(("frequency", "time", "masked", "clips"), [(8, 12, 40, 6000), (8, 32, 200, 2000)])
def test_every_patch_is_hidden_equally_often(draw: Draw, frequency: int, time: int, masked: int, clips: int) -> None:
    source = generators(500)
    counts = sum(draw(frequency, time, masked, source).sum(0) for _ in range(clips // 500))
    share = masked / (frequency * time)
    relative = (counts / clips / share - 1).view(frequency, time)
    # Five standard errors of a patch's own draws, and 2 % by which keeping a part of the last cluster shifts places.
    assert relative.abs().max() < 0.02 + 5 * math.sqrt((1 - share) / share / clips)
    # Over a whole edge the noise is smaller, and a start that avoids the edges would show.
    edges = relative[0], relative[-1], relative[:, 0], relative[:, -1]
    assert max(edge.mean().abs() for edge in edges) < 0.03


def square(row: int, column: int, side: int, frequency: int, time: int) -> frozenset[tuple[int, int]]:
    """The patches of a cluster, cut at the border of the grid."""
    rows, columns = range(row, row + side), range(column, column + side)
    return frozenset((r, c) for r in rows for c in columns if 0 <= r < frequency and 0 <= c < time)


def hidden_sets(mask: Tensor, time: int) -> list[frozenset[tuple[int, int]]]:
    return [frozenset(divmod(patch, time) for patch in clip.nonzero()[:, 0].tolist()) for clip in mask]


@pytest.mark.parametrize("side", [3, 4, 5])
def test_one_cluster_is_a_square_cut_by_the_border_and_never_goes_on_in_the_next_row(
    side: int,
) -> None:
    frequency, time, clips = 8, 14, 600
    area = side * side
    places = [(r, c) for r in range(1 - side, frequency) for c in range(1 - side, time)]
    squares = {square(r, c, side, frequency, time) for r, c in places}
    whole = {shape for shape in squares if len(shape) == area}
    last = (frequency - side) * time
    flat = [{start + i * time + j for i in range(side) for j in range(side)} for start in range(last)]
    wrapped = {frozenset(divmod(patch, time) for patch in patches) for patches in flat} - whole
    exact, like_wrapped = 0, 0
    mask = cluster_mask(frequency, time, area, generators(clips, side), sizes=(side, side))
    for hidden in hidden_sets(mask, time):
        exact += hidden in whole
        like_wrapped += hidden in wrapped
        # The first cluster is there as far as the grid goes; only one that was cut leaves room for another.
        assert hidden in whole or any(shape < hidden for shape in squares - whole)
    expected = len(whole) / len(places)
    assert exact / clips == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / clips))
    # Two cut clusters may happen to look like one that goes on in the next row; in flat numbers every sixth would.
    assert like_wrapped < 0.01 * clips


def test_sides_from_three_to_five_are_equally_likely() -> None:
    # Nine patches of one cluster nearly always span its side, and what touches no border is of one cluster.
    spans = []
    for hidden in hidden_sets(cluster_mask(16, 16, 9, generators(1200)), 16):
        rows, columns = zip(*hidden, strict=True)
        if min(rows + columns) > 0 and max(rows + columns) < 15:
            spans.append(max(max(rows) - min(rows), max(columns) - min(columns)) + 1)
    assert set(spans) == {3, 4, 5}
    # Of the 15 + side starts along an axis, 15 - side keep off the border.
    inside = [((15 - side) / (15 + side)) ** 2 for side in (3, 4, 5)]
    shares = [spans.count(side) / len(spans) for side in (3, 4, 5)]
    assert shares == pytest.approx([one / sum(inside) for one in inside], abs=0.08)


def test_clustered_patches_have_hidden_neighbours_more_often_than_random_ones() -> None:
    def hidden_to_the_right(mask: Tensor) -> float:
        grid = mask.view(-1, 8, 64)
        return (grid[..., :-1] & grid[..., 1:]).sum().item() / grid[..., :-1].sum().item()

    share = 100 / 512
    assert hidden_to_the_right(random_mask(8, 64, 100, generators(200))) == pytest.approx(share, abs=0.02)
    assert hidden_to_the_right(cluster_mask(8, 64, 100, generators(200))) > 0.6


@pytest.mark.parametrize("length", [1, 2, 5])
def test_frames_are_hidden_in_runs_of_the_length_asked_for(length: int) -> None:
    # Two runs of one clip may touch or overlap and the last is cut down, so nearly all, and not all, are so long.
    first = cluster_mask(1, 400, length, generators(200), sizes=(length, length))
    spans = [int(clip.nonzero().max() - clip.nonzero().min()) + 1 for clip in first]
    assert spans.count(length) > 190
    mask = cluster_mask(1, 400, 100, generators(100), sizes=(length, length)).float()
    begun = (mask[:, 1:] > mask[:, :-1]).sum() + mask[:, 0].sum()
    # Of runs that cover a quarter, where one ends the next begins in a quarter of the cases; the last is cut.
    assert 100 * 100 / float(begun) == pytest.approx(length / 0.75, rel=0.2)


@pytest.mark.parametrize("kind", ["random", "cluster"])
def test_no_padding_is_hidden_and_as_large_a_share_of_the_rest(kind: str) -> None:
    own = torch.tensor([1, 2, 7, 11, 12])
    masking = Masking(kind, 40, padded=True)
    mask = masking.draw(8, 12, generators(5), own).view(5, 8, 12)
    for clip, columns in zip(mask, own.tolist(), strict=True):
        assert not clip[:, columns:].any()
        assert int(clip.sum()) == max(1, round(40 * columns / 12))
    # What is whole is hidden as if nothing had been said, and so is everything where clips have no padding.
    whole = Masking(kind, 40).draw(8, 12, generators(5), own)
    assert torch.equal(mask[4].flatten(), whole[4]) and whole.sum(1).tolist() == [40] * 5
    assert torch.equal(masking.draw(8, 12, generators(5)), whole)


@each_kind
@pytest.mark.parametrize("masked", [0, -1, 96, 97])
def test_hiding_nothing_or_everything_is_an_error_that_gives_the_range(draw: Draw, masked: int) -> None:
    with pytest.raises(ValueError, match=f"{masked} masked patches; expected 1 to 95 on 8 x 12"):
        draw(8, 12, masked, generators(2))
