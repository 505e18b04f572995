"""Features standardised by a batch, beside torch's own layer and beside what they say they are."""

import pytest
import torch
from torch import Tensor, nn

from ssamba.models.batch_norm import BatchNorm
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import HEAD_NORMS, AudioClassifier, TokenClassifier


def batches(count: int, clips: int = 6, features: int = 5) -> list[Tensor]:
    """Of features with other means and deviations each."""
    generator = torch.Generator().manual_seed(0)
    scale, offset = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]), torch.tensor([0.0, 50.0, -1.0, 4.0, 0.3])
    return [scale * torch.randn(clips, features, generator=generator) + offset for _ in range(count)]


def test_in_training_it_is_torchs_layer_with_its_gradients() -> None:
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5, affine=False)
    for x in batches(3):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        weights = torch.randn(6, 5)
        found, wanted = ours(one), theirs(other)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        (found * weights).sum().backward()
        (wanted * weights).sum().backward()
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 30])
def test_afterwards_it_is_the_mean_of_the_batches_then_a_moving_one(count: int) -> None:
    norm = BatchNorm(5)
    mean, variance = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for index, x in enumerate(batches(count)):
        norm(x)
        share = max(0.1, 1 / (index + 1))
        mean = (1 - share) * mean + share * x.double().mean(0)
        variance = (1 - share) * variance + share * x.double().var(0, correction=0)
    norm.eval()
    x = batches(count + 1)[-1]
    torch.testing.assert_close(norm(x).double(), (x.double() - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)
    # A clip's answer is its own.
    torch.testing.assert_close(norm(x)[:2], norm(x[:2]), rtol=0, atol=0)


@pytest.mark.parametrize("at", [0, 3])
def test_a_batch_that_is_not_finite_leaves_no_trace(at: int) -> None:
    norms = BatchNorm(5), BatchNorm(5)
    for index, x in enumerate(batches(6)):
        if index == at:
            norms[0](x.clone().index_fill_(0, torch.tensor([1]), torch.inf))
        else:
            for norm in norms:
                norm(x)
    for one, other in zip(norms[0].buffers(), norms[1].buffers(), strict=True):
        assert torch.equal(one, other) and one.isfinite().all()


def test_it_counts_in_float32_under_autocast() -> None:
    norm, (x,) = BatchNorm(5), batches(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x.bfloat16())
    assert found.dtype == torch.bfloat16 and norm.mean.dtype == torch.float32
    wanted = (x.bfloat16().float() - x.bfloat16().float().mean(0)) / x.bfloat16().float().std(0, correction=0)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)


def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder("ssast", {**SIZES["ssast"]["nano"], "num_hidden_layers": 1}, 32, 48, 16, 16, 16, 16)


@pytest.mark.parametrize("norm", HEAD_NORMS)
def test_each_norm_is_what_the_linear_layer_reads(norm: str) -> None:
    model = AudioClassifier(encoder(), 3, "statistics", norm)
    x = torch.randn(4, 48, 32, generator=torch.Generator().manual_seed(1))
    vectors = model.pool(model.encoder(x))
    wanted = {
        "layer": (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, correction=0, keepdim=True),
        "batch": (vectors - vectors.mean(0)) / vectors.std(0, correction=0),
        "none": vectors,
    }[norm]
    linear = model.head[1]
    torch.testing.assert_close(model(x), linear(wanted), rtol=1e-2, atol=1e-2)


def test_what_no_head_can_have() -> None:
    with pytest.raises(ValueError, match="head_norm is 'group'; expected one of layer, batch, none"):
        AudioClassifier(encoder(), 3, "mean", "group")
    with pytest.raises(ValueError, match="head_norm is batch, which is of whole clips; expected layer or none"):
        TokenClassifier(encoder(), 3, "mean", 1, "batch")
