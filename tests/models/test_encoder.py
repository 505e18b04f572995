"""Patches, positions, encoders and heads: what each part computes, against descriptions written out here."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shallow import WHOLE
from torch import Tensor, nn

from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, parameter_count
from ssamba.models.mixer import BidirectionalMixer
from ssamba.models.patches import PatchShape, fit_positions, gather_patches, masked_places
from ssamba.models.ssamba import SsambaStack

SMALL: dict[str, dict[str, Any]] = {
    "ssamba": {**SIZES["ssamba"]["nano"], "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4},
    "ssast": {**SIZES["ssast"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "aum": {**SIZES["aum"]["nano"], "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    "conformer": {**SIZES["conformer"]["nano"], "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48},
    "bilstm": {**SIZES["bilstm"]["nano"], "hidden_size": 32, "state_size": 24},
    "ssd": {**SIZES["ssd"]["nano"], "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "head_dim": 16},
}
each_encoder = pytest.mark.parametrize("encoder", list(SMALL))


def make_encoder(
    encoder: str, num_mel_bins: int = 32, max_length: int = 48, side: int = 8, stride: int = 8, **options: Any
) -> AudioEncoder:
    torch.manual_seed(0)
    model = AudioEncoder(encoder, {**SMALL[encoder], **options}, num_mel_bins, max_length, side, side, stride, stride)
    return move(model)


def move(module: nn.Module) -> Any:
    """Away from the start, where a bias of zero or a norm of one would hide that it is skipped."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def spectrogram(batch: int, frames: int, mel_bins: int, seed: int = 2) -> Tensor:
    return torch.randn(batch, frames, mel_bins, generator=torch.Generator().manual_seed(seed))


def some_mask(batch: int, patches: int, masked: int, seed: int = 3) -> Tensor:
    order = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order < masked


# Patches


def test_a_patch_is_read_mel_bin_by_mel_bin_and_patches_row_by_row() -> None:
    # Frame t, bin m holds 100 m + t: a grid of 2 rows x 3 columns of patches of 2 bins x 3 frames.
    log_mel = (100 * torch.arange(4) + torch.arange(9).unsqueeze(1)).float().unsqueeze(0)
    patches = PatchShape(2, 3, 2, 3).cut(log_mel)[0]
    assert patches.tolist() == [
        [0, 1, 2, 100, 101, 102],
        [3, 4, 5, 103, 104, 105],
        [6, 7, 8, 106, 107, 108],
        [200, 201, 202, 300, 301, 302],
        [203, 204, 205, 303, 304, 305],
        [206, 207, 208, 306, 307, 308],
    ]


@pytest.mark.parametrize(
    ("shape", "frames", "mel_bins"),
    [((16, 16, 16, 16), 100, 128), ((16, 16, 10, 10), 98, 128), ((128, 2, 128, 1), 20, 128), ((8, 4, 3, 5), 31, 30)],
)
def test_cut_equals_torchs_unfold(shape: tuple[int, int, int, int], frames: int, mel_bins: int) -> None:
    patch = PatchShape(*shape)
    log_mel = spectrogram(2, frames, mel_bins)
    unfolded = F.unfold(log_mel.transpose(1, 2).unsqueeze(1), shape[:2], stride=shape[2:]).transpose(1, 2)
    assert torch.equal(patch.cut(log_mel), unfolded)
    assert math.prod(patch.grid(mel_bins, frames)) == unfolded.shape[1]


@pytest.mark.parametrize(
    ("fshape", "tshape", "frames", "mel_bins"), [(16, 16, 64, 128), (128, 2, 10, 128), (4, 6, 18, 8)]
)
def test_join_is_the_inverse_of_cut(fshape: int, tshape: int, frames: int, mel_bins: int) -> None:
    patch = PatchShape(fshape, tshape, fshape, tshape)
    log_mel = spectrogram(2, frames, mel_bins)
    assert torch.equal(patch.join(patch.cut(log_mel), mel_bins, frames), log_mel)
    longer = F.pad(log_mel, (0, 0, 0, tshape - 1))  # what fills no whole patch is left out
    assert torch.equal(patch.cut(longer), patch.cut(log_mel))


@pytest.mark.parametrize(("frames", "mel_bins"), [(15, 128), (16, 15)])
def test_a_spectrogram_smaller_than_a_patch_is_an_error_that_gives_both_sizes(frames: int, mel_bins: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames x {mel_bins} mel bins .* 16 frames x 16 mel bins"):
        PatchShape(16, 16, 10, 10).cut(torch.zeros(1, frames, mel_bins))


def test_gather_patches_takes_the_masked_rows_of_each_clip_in_order() -> None:
    x, mask = torch.arange(2 * 10 * 3).view(2, 10, 3), some_mask(2, 10, 4)
    places = masked_places(mask)
    assert torch.equal(places, masked_places(mask, 4))
    gathered = gather_patches(x, places)
    for clip in range(2):
        assert torch.equal(gathered[clip], x[clip, mask[clip]])


# Positions


def test_positions_of_the_same_grid_are_untouched() -> None:
    positions = torch.randn(3, 5, 4)
    assert torch.equal(fit_positions(positions, 3, 5), positions)


@pytest.mark.parametrize(("width", "columns", "start"), [(12, 9, 2), (12, 4, 4), (7, 3, 2), (7, 4, 1), (5, 1, 2)])
def test_a_shorter_clip_takes_the_middle_columns(width: int, columns: int, start: int) -> None:
    positions = torch.randn(2, width, 3)
    assert torch.equal(fit_positions(positions, 2, columns), positions[:, start : start + columns])


def test_a_longer_clip_is_interpolated_along_time_alone() -> None:
    positions = torch.tensor([[0.0, 1.0], [10.0, 14.0]]).unsqueeze(-1)
    assert fit_positions(positions, 2, 4)[..., 0].tolist() == [[0, 0.25, 0.75, 1], [10, 11, 13, 14]]


@pytest.mark.parametrize("grid", [(8, 12), (12, 30), (4, 12), (3, 40), (12, 12)])
def test_positions_are_interpolated_bilinearly(grid: tuple[int, int]) -> None:
    positions = torch.randn(8, 12, 5)
    image = F.interpolate(positions.permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fit_positions(positions, *grid), image[0].permute(1, 2, 0))


def test_a_shorter_clip_on_another_frequency_grid_is_cut_first_and_interpolated_along_frequency() -> None:
    positions = torch.randn(8, 12, 5)
    middle = positions[:, 2:11]
    image = F.interpolate(middle.permute(2, 0, 1)[None], size=(12, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fit_positions(positions, 12, 9), image[0].permute(1, 2, 0))


@pytest.mark.parametrize("grid", [(2, 3), (3, 7), (1, 2)])
def test_fitted_positions_pass_gradients_on(grid: tuple[int, int]) -> None:
    positions = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: fit_positions(p, *grid), positions)


# The bidirectional mixer and its stack


def make_stack(residual: str, layers: int = 6) -> SsambaStack:
    torch.manual_seed(0)
    stack: SsambaStack = move(SsambaStack(24, layers, 4, 2, 4, residual, 1e-5, "auto"))
    return stack


def test_a_mixer_with_exchanged_directions_equals_reversing_its_tokens() -> None:
    torch.manual_seed(0)
    mixer: BidirectionalMixer = move(BidirectionalMixer(24, 4, 2, 4, "auto"))
    x = torch.randn(2, 19, 24)
    flipped = mixer(x.flip(1)).flip(1)
    torch.testing.assert_close(mixer(x, swap_directions=True), flipped, rtol=1e-5, atol=1e-6)
    assert (mixer(x) - flipped).abs().max() > 0.01


def test_a_mixer_is_the_mean_of_a_scan_ahead_and_one_back() -> None:
    torch.manual_seed(0)
    mixer: BidirectionalMixer = move(BidirectionalMixer(24, 4, 2, 4, "reference"))
    x = torch.randn(2, 19, 24, dtype=torch.float32)

    def one_way(part: Any, x: Tensor, z: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (3, 0))
        x = F.silu(F.conv1d(padded, part.conv.weight, part.conv.bias, groups=48).transpose(1, 2))
        rank, b, c = part.x_proj(x).split([2, 4, 4], -1)
        step = F.softplus(part.dt_proj(rank))
        h, outputs = torch.zeros(2, 48, 4), []
        for t in range(x.shape[1]):
            decay = torch.exp(step[:, t, :, None] * -part.A_log.exp())
            h = decay * h + (step[:, t] * x[:, t])[:, :, None] * b[:, t, None]
            outputs.append((h * c[:, t, None]).sum(-1) + part.D * x[:, t])
        return torch.stack(outputs, 1) * F.silu(z)

    inner, z = mixer.in_proj(x).chunk(2, -1)
    ahead = one_way(mixer.ahead, inner, z)
    back = one_way(mixer.back, inner.flip(1), z.flip(1)).flip(1)
    torch.testing.assert_close(mixer(x), mixer.out_proj((ahead + back) / 2), rtol=1e-4, atol=1e-5)


def test_the_doubling_residual_equals_the_original_description_with_its_flips() -> None:
    stack, x = make_stack("doubling"), torch.randn(2, 15, 24)

    def block(layer: Any, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return layer.mixer(layer.norm(residual)), residual

    hidden, residual = x, None
    for first, second in zip(stack.layers[::2], stack.layers[1::2], strict=True):
        ahead, kept = block(first, hidden, residual)
        turned, turned_kept = block(second, hidden.flip(1), None if residual is None else residual.flip(1))
        hidden, residual = ahead + turned.flip(1), kept + turned_kept.flip(1)
    wanted = stack.norm(stack.norm(hidden + residual))
    torch.testing.assert_close(stack(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_plain_residual_is_one_layer_after_another() -> None:
    stack, x = make_stack("plain", 3), torch.randn(2, 15, 24)
    wanted = x
    for layer in stack.layers:
        wanted = wanted + layer.mixer(layer.norm(wanted))
    torch.testing.assert_close(stack(x), stack.norm(wanted), rtol=1e-5, atol=1e-6)


def test_the_scan_starts_with_mambas_step_sizes_and_decays() -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMixer(64, 8, 2, 4, "auto")
    for part in (mixer.ahead, mixer.back):
        step = F.softplus(part.dt_proj.bias)
        assert step.min() >= 0.99e-3 and step.max() <= 1.01e-1
        assert step.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.2)  # log-uniform
        torch.testing.assert_close(part.A_log.exp(), torch.arange(1.0, 9).expand(128, 8))
        assert torch.equal(part.D, torch.ones(128))


def test_a_wrong_residual_or_an_odd_number_of_paired_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'none'; expected 'doubling' or 'plain'"):
        make_stack("none")
    with pytest.raises(ValueError, match=r"num_hidden_layers is 5"):
        make_stack("doubling", 5)


# Encoders


def counted(encoder: str, options: dict[str, Any], patches: int, pixels: int) -> int:
    """The parameters of an encoder, added up by hand."""
    d, layers = options["hidden_size"], options["num_hidden_layers"]
    norm, class_tokens = 2 * d, 1
    if encoder == "ssast":
        layer, class_tokens = 2 * norm + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d, 2
    elif encoder == "conformer":
        inner, taps = options["intermediate_size"], options["conv_depthwise_kernel_size"]
        half = norm + (d + 1) * inner + (inner + 1) * d
        convolution = norm + (d + 1) * 2 * d + (taps + 1) * d + norm + (d + 1) * d
        # Every layer ends with a norm, and nothing follows the last.
        layer, norm = 2 * half + norm + (d + 1) * 3 * d + (d + 1) * d + convolution + norm, 0
    elif encoder == "ssd":
        e, n, h = options["expand"] * d, options["state_size"], options["expand"] * d // options["head_dim"]
        layer = norm + d * (2 * e + 4 * n + 2 * h) + (e + 4 * n) * (options["conv_kernel"] + 1) + 5 * h + e * d
    elif encoder == "bilstm":
        n = options["state_size"]
        layer = norm + 2 * 4 * n * (d + n + 2) + (2 * n + 1) * d
    else:
        e, n, r = options["expand"] * d, options["state_size"], math.ceil(d / 16)
        direction = e * (options["conv_kernel"] + 1) + e * (r + 2 * n) + (r + 1) * e + e * n + e
        directions = 2 * direction
        if encoder == "aum":
            norm = d
            directions = {"fo_fo": direction, "fo_bi": direction + e * n, "bi_bi": directions}[options["scan_layout"]]
        layer = norm + 2 * e * d + e * d + directions
    return layers * layer + norm + (pixels + 1) * d + 2 * class_tokens * d + patches * d + d


MILLIONS = {
    "ssamba": [0.51, 6.92, 25.35, 96.70],
    "ssast": [0.52, 5.49, 21.59, 85.65],
    "aum": [0.47, 6.34, 23.73, 91.70, 322.39],
    "conformer": [0.51, 7.02, 24.20, 95.88],
    "bilstm": [0.52, 6.86, 24.73, 98.22],
    "ssd": [0.50, 6.82, 25.23, 95.09],
}


@pytest.mark.parametrize(
    ("encoder", "size", "millions"),
    [(encoder, size, MILLIONS[encoder][i]) for encoder in SIZES for i, size in enumerate(SIZES[encoder])],
)
def test_every_size_has_the_parameters_of_its_description(encoder: str, size: str, millions: float) -> None:
    options = WHOLE[encoder][size]
    with torch.device("meta"):
        model = AudioEncoder(encoder, options, 128, 1024, 16, 16, 16, 16)
    assert parameter_count(model) == counted(encoder, options, patches=512, pixels=256)
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("size", SIZES["ssamba"])
@pytest.mark.parametrize("encoder", ["conformer", "bilstm", "ssd"])
def test_what_ssamba_is_compared_with_has_as_many_parameters(encoder: str, size: str) -> None:
    ours, theirs = (counted(name, WHOLE[name][size], patches=512, pixels=256) for name in ("ssamba", encoder))
    assert theirs == pytest.approx(ours, rel=0.05)


@pytest.mark.parametrize(("size", "published"), [("tiny", 6), ("small", 23), ("base", 89)])
def test_ssast_in_its_authors_format_has_the_millions_that_they_publish(size: str, published: int) -> None:
    with torch.device("meta"):
        model = MaskedPatchModel(AudioEncoder("ssast", SIZES["ssast"][size], 128, 1024, 16, 16, 16, 16))
        # What their checkpoints hold besides: two classifiers of ImageNet, never called.
        unused = 2 * parameter_count(nn.Linear(model.encoder.hidden_size, 1000))
    assert round((parameter_count(model) + unused) / 1e6) == published


@pytest.mark.parametrize(
    ("size", "layout", "classes", "frames", "published"),
    [
        ("base", "fo_bi", 527, 1024, 92.1),
        ("base", "fo_bi", 35, 128, 91.4),
        ("small", "bi_bi", 527, 1024, 25.5),
        ("small", "bi_bi", 1251, 1024, 25.8),
        ("small", "bi_bi", 35, 128, 25.2),
        ("small", "bi_bi", 44, 1024, 25.4),
    ],
)
def test_aums_classifiers_have_the_millions_that_its_authors_publish(
    size: str, layout: str, classes: int, frames: int, published: float
) -> None:
    with torch.device("meta"):
        options = {**SIZES["aum"][size], "scan_layout": layout}
        model = AudioClassifier(AudioEncoder("aum", options, 128, frames, 16, 16, 16, 16), classes, "class", "none")
    assert parameter_count(model.encoder) == counted("aum", options, patches=frames // 2, pixels=256)
    # Theirs have no mask token.
    assert round((parameter_count(model) - model.encoder.hidden_size) / 1e6, 1) == published


@each_encoder
def test_the_pixels_of_a_hidden_patch_influence_nothing_and_those_of_a_visible_one_do(encoder: str) -> None:
    model = make_encoder(encoder)
    log_mel, mask = spectrogram(2, 48, 32), some_mask(2, 24, 10)
    patches = model.patch_shape.cut(log_mel)
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(9))
    hidden_changed = model.patch_shape.join(torch.where(mask.unsqueeze(-1), noise, patches), 32, 48)
    visible_changed = model.patch_shape.join(torch.where(mask.unsqueeze(-1), patches, noise), 32, 48)
    with torch.no_grad():
        before, hidden, visible = (model(x, mask) for x in (log_mel, hidden_changed, visible_changed))
    assert torch.equal(hidden.tokens, before.tokens) and torch.equal(hidden.class_tokens, before.class_tokens)
    assert (visible.tokens - before.tokens).abs().mean() > 0.01


@each_encoder
def test_the_mask_token_stands_for_hidden_patches_only_and_keeps_their_positions(encoder: str) -> None:
    model = make_encoder(encoder)
    log_mel, mask = spectrogram(1, 48, 32), some_mask(1, 24, 10)
    embedded = []
    model.stack.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    with torch.no_grad():
        model(log_mel, mask)
        model(log_mel)
    first = {"aum": 12, "bilstm": 12, "ssd": 12}.get(encoder, 0)
    count = 2 if encoder == "ssast" else 1
    hidden, plain = (torch.cat([x[:, :first], x[:, first + count :]], 1) for x in embedded)
    positions = model.positions.flatten(0, 1).unsqueeze(0)
    torch.testing.assert_close(hidden[mask], (model.mask_token + positions)[mask])
    assert torch.equal(hidden[~mask], plain[~mask])
    torch.testing.assert_close(plain, model.projection(model.patch_shape.cut(log_mel)) + positions)
    for x in embedded:
        assert torch.equal(x[0, first : first + count], model.class_tokens + model.class_positions)


@pytest.mark.parametrize(("frames", "patches"), [(48, 24), (24, 12), (8, 4)])
@each_encoder
def test_tokens_come_out_of_the_stack_in_the_order_in_which_they_went_in(
    encoder: str, frames: int, patches: int
) -> None:
    model = make_encoder(encoder)
    numbers: list[Tensor] = []

    def number(_: Any, inputs: Any, output: Tensor) -> Tensor:
        """In place of each token its place, but where a class token is: that is -1."""
        is_class = (inputs[0].unsqueeze(2) == model.class_tokens + model.class_positions).all(-1).any(-1)
        place = (~is_class).cumsum(1) - 1
        numbers.append(is_class)
        return torch.where(is_class, -1, place).unsqueeze(-1).expand_as(output).float()

    model.stack.register_forward_hook(number)
    with torch.no_grad():
        encoded = model(spectrogram(2, frames, 32))
    assert encoded.tokens[:, :, 0].tolist() == [list(range(patches))] * 2
    assert encoded.class_tokens.eq(-1).all() and encoded.class_tokens.shape[1] == int(numbers[0][0].sum())


@each_encoder
def test_without_a_mask_the_mask_token_has_no_influence(encoder: str) -> None:
    model, log_mel = make_encoder(encoder), spectrogram(1, 48, 32)
    with torch.no_grad():
        before = model(log_mel)
        nothing_hidden = model(log_mel, torch.zeros(1, 24, dtype=torch.bool))
        model.mask_token += 1
        after = model(log_mel)
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.tokens, nothing_hidden.tokens)


@pytest.mark.parametrize(
    ("frames", "mel_bins", "grid"), [(24, 32, (4, 3)), (100, 32, (4, 12)), (48, 16, (2, 6)), (61, 64, (8, 7))]
)
@each_encoder
def test_another_length_or_number_of_bins_equals_an_encoder_made_for_it_with_fitted_positions(
    encoder: str, frames: int, mel_bins: int, grid: tuple[int, int]
) -> None:
    model, log_mel = make_encoder(encoder), spectrogram(2, frames, mel_bins)
    other = make_encoder(encoder, mel_bins, frames)
    assert other.grid == grid
    state = {**model.state_dict(), "positions": fit_positions(model.positions.detach(), *grid)}
    other.load_state_dict(state)
    with torch.no_grad():
        ours, wanted = model(log_mel), other(log_mel)
    assert ours.tokens.shape == (2, math.prod(grid), 32)
    assert ours.class_tokens.shape == (2, model.stack.num_class_tokens, 32)
    torch.testing.assert_close(ours.tokens, wanted.tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.class_tokens, wanted.class_tokens, rtol=1e-5, atol=1e-5)


@each_encoder
@pytest.mark.parametrize("mel_bins", [64, 128])
def test_strides_of_ten_give_overlapping_patches(encoder: str, mel_bins: int) -> None:
    model = make_encoder(encoder, mel_bins, 100, side=16, stride=10)
    rows = {64: 5, 128: 12}[mel_bins]
    assert model.grid == (rows, 9)
    log_mel = spectrogram(1, 100, mel_bins)
    with torch.no_grad():
        before = model(log_mel).tokens
        log_mel[:, 96:] += 1  # beyond the last whole patch
        assert torch.equal(model(log_mel).tokens, before)
        log_mel[:, 95] += 1
        assert (model(log_mel).tokens - before).abs().max() > 1e-3


@each_encoder
def test_an_encoder_is_rebuilt_from_its_arguments_and_weights(encoder: str) -> None:
    model, log_mel = make_encoder(encoder), spectrogram(1, 48, 32)
    again = AudioEncoder(**model.arguments)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(log_mel).tokens, model(log_mel).tokens)


@each_encoder
def test_clips_of_a_batch_do_not_influence_each_other(encoder: str) -> None:
    model, log_mel = make_encoder(encoder), spectrogram(3, 48, 32)
    with torch.no_grad():
        together = model(log_mel).tokens
        for clip in range(3):
            torch.testing.assert_close(model(log_mel[clip : clip + 1]).tokens[0], together[clip], rtol=1e-5, atol=1e-5)


@each_encoder
def test_bfloat16_autocast_stays_finite_and_near_float32(encoder: str) -> None:
    model, log_mel = MaskedPatchModel(make_encoder(encoder)), spectrogram(2, 48, 32)
    mask = some_mask(2, 24, 10)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(log_mel, mask)
        prediction.contrastive.float().square().mean().backward()
    plain = model(log_mel, mask)
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())
    error = (prediction.contrastive.float() - plain.contrastive).abs().mean()
    assert error < 0.03 * plain.contrastive.abs().mean()


@each_encoder
def test_pretraining_gradients_reach_every_parameter(encoder: str) -> None:
    model = MaskedPatchModel(make_encoder(encoder))
    prediction = model(spectrogram(2, 48, 32), some_mask(2, 24, 10))
    (prediction.contrastive.square().mean() + prediction.reconstruction.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("encoder", "pooling", "beyond_reach"),
    [
        ("ssamba", "mean", []),
        # Nothing comes before the class token in the last pair's forward scans, so nothing decays there.
        ("ssamba", "class", ["encoder.stack.layers.2.mixer.ahead.A_log", "encoder.stack.layers.3.mixer.back.A_log"]),
        ("ssast", "mean", []),
        ("ssast", "class", []),
        *(("ssast", pooling, []) for pooling in ("rows", "statistics", "segments", "attentive")),
        ("aum", "mean", []),
        ("aum", "class", []),
        ("conformer", "mean", []),
        ("conformer", "class", []),
        ("bilstm", "mean", []),
        ("bilstm", "class", []),
        ("ssd", "mean", []),
        ("ssd", "class", []),
    ],
)
def test_classification_gradients_reach_every_parameter_but_the_mask_token(
    encoder: str, pooling: str, beyond_reach: list[str]
) -> None:
    model = AudioClassifier(make_encoder(encoder), 5, pooling)
    F.cross_entropy(model(spectrogram(2, 48, 32)), torch.tensor([1, 4])).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == ["encoder.mask_token", *beyond_reach]


# Heads


def test_targets_and_predictions_are_those_of_the_masked_patches() -> None:
    model = move(MaskedPatchModel(make_encoder("ssast")))
    log_mel, mask = spectrogram(2, 48, 32), some_mask(2, 24, 10)
    with torch.no_grad():
        prediction, tokens = model(log_mel, mask), model.encoder(log_mel, mask).tokens
        for clip in range(2):
            hidden = tokens[clip, mask[clip]]
            assert torch.equal(prediction.target[clip], model.encoder.patch_shape.cut(log_mel)[clip, mask[clip]])
            torch.testing.assert_close(prediction.contrastive[clip], model.contrastive_head(hidden))
            torch.testing.assert_close(prediction.reconstruction[clip], model.reconstruction_head(hidden))


@each_encoder
def test_logits_are_a_layer_norm_and_a_linear_layer_on_the_pooled_tokens(encoder: str) -> None:
    log_mel = spectrogram(2, 48, 32)
    for pooling in ("mean", "class"):
        model = move(AudioClassifier(make_encoder(encoder), 5, pooling))
        norm, linear = model.head
        with torch.no_grad():
            tokens, class_tokens = model.encoder(log_mel)
            pooled = tokens.mean(1) if pooling == "mean" else class_tokens.mean(1)
            wanted = linear(F.layer_norm(pooled, (32,), norm.weight, norm.bias, 1e-5))
            torch.testing.assert_close(model(log_mel), wanted)


@each_encoder
def test_without_the_heads_norm_logits_are_a_linear_layer_on_the_pooled_tokens(encoder: str) -> None:
    model, log_mel = move(AudioClassifier(make_encoder(encoder), 5, "class", head_norm="none")), spectrogram(2, 48, 32)
    assert {name for name, _ in model.head.named_parameters()} == {"1.weight", "1.bias"}
    with torch.no_grad():
        pooled = model.encoder(log_mel).class_tokens.mean(1)
        torch.testing.assert_close(model(log_mel), pooled @ model.head[1].weight.T + model.head[1].bias)


def test_wrong_names_are_errors_that_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'gru'; expected one of ssamba, ssast, aum, conformer, bilstm, ssd"):
        AudioEncoder("gru", SMALL["ssast"], 32, 48, 8, 8, 8, 8)
    with pytest.raises(ValueError, match=r"'max'; expected one of mean, class, rows"):
        AudioClassifier(make_encoder("ssast"), 5, "max")
    with pytest.raises(ValueError, match="32 is not a multiple of 5 attention heads"):
        make_encoder("ssast", num_attention_heads=5)
    with pytest.raises(ValueError, match="32 is not a multiple of 5 attention heads"):
        make_encoder("conformer", num_attention_heads=5)
    with pytest.raises(ValueError, match="conv_depthwise_kernel_size is 4; expected an odd number"):
        make_encoder("conformer", conv_depthwise_kernel_size=4)
