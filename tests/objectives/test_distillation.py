"""What a student tells of another model's features, number by number."""

import pytest
import torch
from torch import Tensor

from ssamba.models.encoder import Encoded
from ssamba.models.heads import MaskedPrediction
from ssamba.objectives import FeatureHead, Seen, distillation, spread

ROWS, COLUMNS, WIDTH = 2, 3, 5


def seen_of(own: Tensor | None, masks: int = 2) -> Seen:
    """Two clips of 2 x 3 patches, each behind `masks` masks, of a teacher of 5 dimensions."""
    generator = torch.Generator().manual_seed(1)
    told = torch.randn(2 * masks, ROWS * COLUMNS, WIDTH, generator=generator)
    pixels, places = torch.zeros(2 * masks, 1, 4), torch.zeros(2 * masks, 1, dtype=torch.int64)
    prediction = MaskedPrediction(pixels, pixels, pixels, None, places, {"distillation": told})
    features = torch.randn(2, COLUMNS, WIDTH, generator=generator).half()
    return Seen(prediction, masks, None, features, None if own is None else own.repeat_interleave(masks, 0))


@pytest.mark.parametrize("columns", [None, (3, 1)])
@pytest.mark.parametrize("masks", [1, 2])
def test_every_patch_tells_its_columns_features(columns: tuple[int, int] | None, masks: int) -> None:
    own = None if columns is None else (torch.arange(COLUMNS) < torch.tensor(columns).unsqueeze(1)).repeat(1, ROWS)
    seen = seen_of(own, masks)
    found, told = distillation(seen), seen.prediction.more["distillation"]
    assert seen.features is not None
    errors = []
    for view in range(2 * masks):
        for row in range(ROWS):
            for column in range(COLUMNS if columns is None else columns[view // masks]):
                wanted = seen.features[view // masks, column].float()
                errors.append(float((told[view, row * COLUMNS + column] - wanted).square().mean()))
    assert found["distillation"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    torch.testing.assert_close(found["distillation_spread"], spread(told, seen.own))


def test_what_says_nothing_of_standardised_features_has_an_error_of_one() -> None:
    seen = seen_of(None)
    features = torch.nn.functional.layer_norm(torch.randn(2, COLUMNS, 64), (64,))
    nothing = {"distillation": torch.zeros(4, ROWS * COLUMNS, 64)}
    found = distillation(seen._replace(features=features, prediction=seen.prediction._replace(more=nothing)))
    assert found["distillation"].item() == pytest.approx(1, abs=1e-3)
    assert found["distillation_spread"] == 0


def test_the_head_tells_of_all_patches_whatever_is_hidden() -> None:
    head = FeatureHead(4, WIDTH)
    tokens = torch.randn(2, 6, 4)
    encoded = Encoded(tokens, torch.randn(2, 1, 4))
    first, second = (head(tokens[:, places], encoded) for places in ([0], [3, 4]))
    assert torch.equal(first, second) and first.shape == (2, 6, WIDTH)
    linear, _, last = head.projection
    wanted = torch.nn.functional.gelu(tokens[1, 5] @ linear.weight.T + linear.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(first[1, 5], wanted)
