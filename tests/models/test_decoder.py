"""Encoders that get the visible patches alone, and the decoder that fills in the others, against loops over patches."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.masking import Masking
from ssamba.models.decoder import PatchDecoder, decoder_of
from ssamba.models.encoder import SIZES, AudioEncoder, Encoded
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.patches import masked_places, visible_places

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ssamba": ("ssamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "residual": "plain"}),
    "doubling": ("ssamba", {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, "residual": "doubling"}),
    "ssast": ("ssast", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "aum": ("aum", {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    "conformer": ("conformer", {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}),
    "bilstm": ("bilstm", {"hidden_size": 32, "state_size": 24}),
    "ssd": ("ssd", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "head_dim": 16}),
}
each_encoder = pytest.mark.parametrize("name", list(SMALL))
PATCHES, HIDDEN = 24, 18  # a grid of 4 x 6


def move(module: nn.Module) -> Any:
    """Away from the start, where a bias of zero or a norm of one would hide that it is skipped."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def make_encoder(name: str, patch: tuple[int, int] = (8, 8)) -> AudioEncoder:
    torch.manual_seed(0)
    encoder, options = SMALL[name]
    model: AudioEncoder = move(
        AudioEncoder(encoder, {**SIZES[encoder]["nano"], **options}, 32, 48, *patch, *patch).eval()
    )
    return model


def make_model(name: str, patch: tuple[int, int] = (8, 8)) -> MaskedPatchModel:
    encoder = make_encoder(name, patch)
    model: MaskedPatchModel = move(MaskedPatchModel(encoder, decoder=decoder_of(encoder)))
    return model


def spectrogram(batch: int, frames: int = 48, seed: int = 2) -> Tensor:
    return torch.randn(batch, frames, 32, generator=torch.Generator().manual_seed(seed))


def some_mask(batch: int, patches: int = PATCHES, masked: int = HIDDEN, seed: int = 3) -> Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1) < masked


# Which patches are visible


def test_visible_places_are_those_that_the_mask_leaves() -> None:
    mask = some_mask(5)
    found = visible_places(mask, HIDDEN)
    for clip in range(5):
        assert found[clip].tolist() == [place for place in range(PATCHES) if not mask[clip, place]]


def test_a_clip_that_ends_in_padding_gives_all_its_own_visible_patches_and_fills_up_with_padding() -> None:
    generators = [torch.Generator().manual_seed(clip) for clip in range(24)]
    columns = torch.arange(24) % 6 + 1
    mask = Masking("random", HIDDEN, padded=True).draw(4, 6, generators, columns)
    own = (torch.arange(6) < columns.unsqueeze(1)).repeat(1, 4)
    found = visible_places(mask, HIDDEN, own)
    assert found.shape == (24, PATCHES - HIDDEN)
    for clip in range(24):
        seen = [place for place in range(PATCHES) if own[clip, place] and not mask[clip, place]]
        padding = [place for place in range(PATCHES) if not own[clip, place]]
        assert found[clip].tolist() == sorted(seen + padding[: PATCHES - HIDDEN - len(seen)])


# The encoder


@each_encoder
def test_an_encoder_of_visible_patches_is_its_stack_on_them(name: str) -> None:
    encoder, log_mel, mask = make_encoder(name), spectrogram(3), some_mask(3)
    with torch.no_grad():
        encoded = encoder(log_mel, visible=visible_places(mask, HIDDEN))
        for clip in range(3):
            tokens = []
            for place in range(PATCHES):
                if mask[clip, place]:
                    continue
                row, column = place // 6, place % 6
                patch = log_mel[clip, 8 * column : 8 * column + 8, 8 * row : 8 * row + 8].T.flatten()
                tokens.append(encoder.projection(patch) + encoder.positions[row, column])
            classes = list(encoder.class_tokens + encoder.class_positions)
            # Of the tokens that are there: in the middle, or before them.
            at = len(tokens) // 2 if name in ("aum", "bilstm", "ssd") else 0
            out = list(encoder.stack(torch.stack(tokens[:at] + classes + tokens[at:]).unsqueeze(0))[0])
            wanted = torch.stack(out[:at] + out[at + len(classes) :])
            torch.testing.assert_close(encoded.tokens[clip], wanted, rtol=1e-5, atol=1e-5)
            class_tokens = torch.stack(out[at : at + len(classes)])
            torch.testing.assert_close(encoded.class_tokens[clip], class_tokens, rtol=1e-5, atol=1e-5)


@each_encoder
def test_where_nothing_is_hidden_the_encoder_gives_what_it_gives(name: str) -> None:
    encoder, log_mel = make_encoder(name), spectrogram(2)
    with torch.no_grad():
        found = encoder(log_mel, visible=visible_places(torch.zeros(2, PATCHES, dtype=torch.bool), 0))
        wanted = encoder(log_mel)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.class_tokens, wanted.class_tokens)


# The decoder


@pytest.mark.parametrize("grid", [(4, 6), (1, 24)])
def test_a_decoder_is_convolutions_over_a_grid_that_is_filled_in(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    decoder: PatchDecoder = move(PatchDecoder(32, grid, 12, 3))
    mask = some_mask(2)
    visible, hidden = visible_places(mask, HIDDEN), masked_places(mask)
    tokens = torch.randn(2, PATCHES - HIDDEN, 32)
    with torch.no_grad():
        found = decoder(tokens, visible, hidden, grid)
        for clip in range(2):
            left = list(tokens[clip])
            image = torch.empty(grid[0], grid[1], 12)
            for place in range(PATCHES):
                row, column = place // grid[1], place % grid[1]
                if mask[clip, place]:
                    image[row, column] = decoder.mask_token + decoder.positions[row, column]
                else:
                    image[row, column] = decoder.embedding(left.pop(0))
            for layer in decoder.layers:
                image = image + F.gelu(layer.norm(convolved(image, layer.conv.weight, layer.conv.bias)))
            wanted = decoder.projection(decoder.norm(image)).flatten(0, 1)[mask[clip]]
            torch.testing.assert_close(found[clip], wanted, rtol=1e-5, atol=1e-5)


def convolved(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The sum over the taps of the shifted image (F, P, W), zeros around it."""
    _, _, height, width = weight.shape
    padded = F.pad(image, (0, 0, width // 2, width // 2, height // 2, height // 2))
    rows, columns, _ = image.shape
    taps = [
        padded[down : down + rows, along : along + columns] @ weight[:, :, down, along].T
        for down in range(height)
        for along in range(width)
    ]
    return torch.stack(taps).sum(0) + bias


# Both


class Reader(nn.Module):
    """A head that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Tensor, Encoded]] = []

    def forward(self, tokens: Tensor, encoded: Encoded) -> Tensor:
        self.inputs.append((tokens, encoded))
        return tokens.sum(1)


@each_encoder
def test_heads_read_the_decoders_tokens_and_the_encoders_class_tokens(name: str) -> None:
    encoder, reader = make_encoder(name), Reader()
    assert encoder.grid == (4, 6)
    model = move(MaskedPatchModel(encoder, {"reader": reader}, decoder_of(encoder)))
    log_mel, mask = spectrogram(2), some_mask(2)
    visible = visible_places(mask, HIDDEN)
    with torch.no_grad():
        said = model(log_mel, mask)
        encoded = encoder(log_mel, visible=visible)
        tokens = model.decoder(encoded.tokens, visible, said.places, (4, 6))
        assert torch.equal(said.contrastive, model.contrastive_head(tokens))
        assert torch.equal(said.reconstruction, model.reconstruction_head(tokens))
    ((tokens_read, encoded_read),) = reader.inputs
    assert torch.equal(tokens_read, tokens) and torch.equal(encoded_read.class_tokens, encoded.class_tokens)
    for clip in range(2):  # of all patches, in their order
        assert torch.equal(encoded_read.tokens[clip, mask[clip]], tokens[clip])
        assert torch.equal(encoded_read.tokens[clip, ~mask[clip]], encoded.tokens[clip])
    patches = encoder.patch_shape.cut(log_mel)
    assert all(torch.equal(said.target[clip], patches[clip, mask[clip]]) for clip in range(2))


@each_encoder
def test_hidden_patches_have_no_say(name: str) -> None:
    model, mask = make_model(name), some_mask(2)
    log_mel, other = spectrogram(2), spectrogram(2, seed=5)
    shape = model.encoder.patch_shape
    mixed = torch.where(mask.unsqueeze(2), shape.cut(other), shape.cut(log_mel))
    with torch.no_grad():
        before, after = model(log_mel, mask), model(shape.join(mixed, 32, 48), mask)
    assert torch.equal(before.reconstruction, after.reconstruction)
    assert not torch.equal(before.target, after.target)


@each_encoder
def test_clips_with_padding_are_what_each_is_alone(name: str) -> None:
    """A batch with unequal numbers of hidden patches, against each clip by itself."""
    encoder, reader, log_mel = make_encoder(name), Reader(), spectrogram(4)
    model: MaskedPatchModel = move(MaskedPatchModel(encoder, {"reader": reader}, decoder_of(encoder)))
    frames = torch.tensor([48, 33, 16, 5])
    mask = Masking("random", HIDDEN, padded=True).draw(
        4,
        6,
        [torch.Generator().manual_seed(clip) for clip in range(4)],
        model.encoder.patch_shape.own_columns(frames, 6),
    )
    own = model.encoder.patch_shape.own_patches(frames, 4, 6)
    with torch.no_grad():
        said = model(log_mel, mask, HIDDEN, own)
        assert said.hidden is not None
        for clip in range(4):
            visible = visible_places(mask[clip : clip + 1], HIDDEN, own[clip : clip + 1])
            encoded = model.encoder(log_mel[clip : clip + 1], visible=visible)
            assert model.decoder is not None
            places = torch.nonzero(mask[clip]).T
            tokens = model.decoder(encoded.tokens, visible, places, (4, 6))
            assert said.places[clip, said.hidden[clip]].tolist() == places[0].tolist()
            torch.testing.assert_close(
                said.reconstruction[clip, said.hidden[clip]], model.reconstruction_head(tokens)[0], rtol=1e-4, atol=1e-5
            )
            read = reader.inputs[0][1].tokens[clip]
            torch.testing.assert_close(read[places[0]], tokens[0], rtol=1e-4, atol=1e-5)
            own_visible = own[clip, visible[0]]
            torch.testing.assert_close(
                read[visible[0, own_visible]], encoded.tokens[0, own_visible], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("patch", [(8, 8), (32, 2)])
@each_encoder
def test_gradients_reach_every_parameter_but_the_encoders_mask_token(name: str, patch: tuple[int, int]) -> None:
    model = make_model(name, patch)
    mask = some_mask(2)
    said = model(spectrogram(2), mask)
    (said.contrastive.square().mean() + said.reconstruction.square().mean()).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == ["encoder.mask_token"]


@each_encoder
def test_bfloat16_autocast_stays_finite_and_near_float32(name: str) -> None:
    model, log_mel, mask = make_model(name), spectrogram(2), some_mask(2)
    with torch.autocast("cpu", torch.bfloat16):
        said = model(log_mel, mask)
        said.reconstruction.float().square().mean().backward()
    plain = model(log_mel, mask)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    error = (said.reconstruction.float() - plain.reconstruction).abs().mean()
    assert error < 0.03 * plain.reconstruction.abs().mean()


@each_encoder
def test_a_longer_clip_has_fitted_positions(name: str) -> None:
    """As if the model were made for it."""
    model = make_model(name)
    log_mel, mask = spectrogram(1, 64), some_mask(1, 32, 24)
    encoder, options = SMALL[name]
    longer = AudioEncoder(encoder, {**SIZES[encoder]["nano"], **options}, 32, 64, 8, 8, 8, 8).eval()
    other = MaskedPatchModel(longer, decoder=decoder_of(longer))
    state = model.state_dict()
    for key in ("encoder.positions", "decoder.positions"):
        image = state[key].permute(2, 0, 1).unsqueeze(0)
        state[key] = F.interpolate(image, size=(4, 8), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    other.load_state_dict(state)
    with torch.no_grad():
        found, wanted = model(log_mel, mask), other(log_mel, mask)
    torch.testing.assert_close(found.reconstruction, wanted.reconstruction, rtol=1e-4, atol=1e-5)
