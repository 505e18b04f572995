"""The audio encoder: log-mel patches, class tokens and positions around a stack of layers.

Shapes: B batch, T frames, M mel bins, F and P grid sizes in frequency and time, L = F * P patch tokens, V visible
patches of a clip, D width.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.models.patches import PatchShape, fit_positions, gather_patches
from ssamba.models.stack import Stack
from ssamba.parts import load_class, names, own_names, parts

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    name: parts("encoder")[name][0].read().sizes for name in own_names("encoder")
}
"""Of this package's encoders: size -> options."""

PATCH_ORDERS = ("frequency", "time")
"""Of patches in a stack: one frequency row after another, as the originals' scans meet them, or one column after
another, so that all bands of a moment are neighbours."""


@functools.cache
def find_stack(encoder: str) -> type[Stack]:
    """The stack of an encoder's name, which is one of `ssamba.parts`.

    Raises:
        UserError: there is none, or it does not have what a `Stack` is to have.
    """
    stack = load_class("encoder", encoder, Stack)
    try:
        if not stack.sizes:
            raise LookupError("it has none")
        types = stack.option_types()
        for options in stack.sizes.values():
            for name in ("hidden_size", "num_hidden_layers", *types):
                msgspec.convert(options[name], types[name])
    except (LookupError, TypeError, NameError, msgspec.ValidationError) as error:
        raise UserError(
            f"{stack.__name__}, of the encoder {encoder}, does not say its sizes: {type(error).__name__}: {error}; "
            "expected hidden_size, num_hidden_layers and its other arguments in each, of the types of its __init__"
        ) from error
    return stack


class Encoded(NamedTuple):
    """tokens: (B, L, D), one for each patch, frequency row by frequency row, or (B, V, D), one for each that was asked
    for; class_tokens: (B, 1 or 2, D)."""

    tokens: Tensor
    class_tokens: Tensor


class AudioEncoder(nn.Module):
    """A spectrogram in, a vector for each patch and class token out; every encoder has these shapes.

    Args:
        encoder: a name of `ssamba.parts`.
        options: its stack's arguments, such as one of its `sizes` has; "hidden_size" is D.
        num_mel_bins, max_length: M and T (frames) of the clips it is made for; other lengths and numbers of bins work,
            the positional grid is cut or interpolated.
        fshape, tshape, frequency_stride, time_stride: the patch, in mel bins and frames.
        patch_order: of `PATCH_ORDERS`, within the stack alone: masks, positions and what is given back are in rows.
        scan_backend: of `ssamba.ops.BACKENDS`, for encoders that scan.
    """

    def __init__(
        self,
        encoder: str,
        options: Mapping[str, Any],
        num_mel_bins: int,
        max_length: int,
        fshape: int,
        tshape: int,
        frequency_stride: int,
        time_stride: int,
        patch_order: str = "frequency",
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        if encoder not in names("encoder"):
            raise ValueError(f"encoder is {encoder!r}; expected one of {', '.join(names('encoder'))}")
        if patch_order not in PATCH_ORDERS:
            raise ValueError(f"patch_order is {patch_order!r}; expected one of {', '.join(PATCH_ORDERS)}")
        # What rebuilds this module; the backend is no part of it, since it does not change the numbers.
        self.arguments: dict[str, Any] = {
            "encoder": encoder,
            "options": dict(options),
            "num_mel_bins": num_mel_bins,
            "max_length": max_length,
            "fshape": fshape,
            "tshape": tshape,
            "frequency_stride": frequency_stride,
            "time_stride": time_stride,
            "patch_order": patch_order,
        }
        self.patch_order = patch_order
        width = options["hidden_size"]
        self.hidden_size: int = width
        self.patch_shape = PatchShape(fshape, tshape, frequency_stride, time_stride)
        self.grid = self.patch_shape.grid(num_mel_bins, max_length)
        stack = find_stack(encoder)
        extra = {"scan_backend": scan_backend} if stack.scans else {}
        self.projection = nn.Linear(fshape * tshape, width)
        self.stack = stack(**options, **extra)
        count = self.stack.num_class_tokens
        self.class_tokens = nn.Parameter(torch.empty(count, width))
        self.class_positions = nn.Parameter(torch.empty(count, width))
        self.positions = nn.Parameter(torch.empty(*self.grid, width))
        self.mask_token = nn.Parameter(torch.empty(width))
        for parameter in (self.class_tokens, self.class_positions, self.positions, self.mask_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        log_mel: Tensor,
        mask: Tensor | None = None,
        kept: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Encoded:
        """Encode normalised log-mel spectrograms.

        Args:
            log_mel: (B, T, M), any T and M of at least one patch.
            mask: bool (B, L), True where the patch is hidden behind the mask token (SSAST section 2.2), or None.
            kept: of the layers' residual branches, by `Stack.draw_kept` in training; None: all as they are.
            visible: int64 (B, V), ascending: the patches that the stack gets, each with its own position, as if there
                were no others (MAE, arXiv 2111.06377), and no mask beside it; None: all.
        """
        out = self.stack(self._embed(log_mel, mask, visible), None, kept)
        return self._split(out, self._grid_of(log_mel), visible)

    def layers_above(self, name: str) -> int:
        """How many layers of the stack, and its end, the parameter of a name lies below: 0 of the final norm, 1 of the
        last layer, n of the first of n, n + 1 of what makes tokens. A pair of SSAMBA's original stack is one layer."""
        layers = self.stack.num_hidden_states - 1
        match name.split("."):
            case ["stack", "layers", number, *_]:
                return layers - int(number) * layers // len(self.stack.layers)
            case ["stack", *_]:
                return 0
            case _:
                return layers + 1

    def hidden_states(self, log_mel: Tensor) -> list[Encoded]:
        """What each layer takes and, last, what `forward` gives: see `Stack`."""
        states: list[Tensor] = []
        self.stack(self._embed(log_mel), states)
        return [self._split(x, self._grid_of(log_mel)) for x in states]

    def _grid_of(self, log_mel: Tensor) -> tuple[int, int]:
        return self.patch_shape.grid(log_mel.shape[2], log_mel.shape[1])

    def _embed(self, log_mel: Tensor, mask: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        grid = self._grid_of(log_mel)
        patches, positions = self.patch_shape.cut(log_mel), fit_positions(self.positions, *grid).flatten(0, 1)
        if visible is not None:
            patches, positions = gather_patches(patches, visible), positions[visible]
        x = self.projection(patches)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        x = x + positions
        return self._insert(_by_columns(x, grid, visible) if self.patch_order == "time" else x)

    def _insert(self, x: Tensor) -> Tensor:
        """Patch tokens (B, L, D) -> (B, L + class tokens, D), the class tokens where the stack wants them."""
        extra = (self.class_tokens + self.class_positions).expand(x.shape[0], -1, -1)
        at = self.stack.class_token_index(x.shape[1])
        return torch.cat([x[:, :at], extra, x[:, at:]] if at else [extra, x], dim=1)

    def _split(self, x: Tensor, grid: tuple[int, int], visible: Tensor | None = None) -> Encoded:
        """What the stack gives of a grid's patches, in rows and apart from the class tokens."""
        count = self.stack.num_class_tokens
        at = self.stack.class_token_index(x.shape[1] - count)
        tokens = torch.cat([x[:, :at], x[:, at + count :]], dim=1) if at else x[:, count:]
        if self.patch_order == "time":
            tokens = _by_rows(tokens, grid, visible)
        return Encoded(tokens, x[:, at : at + count])


def _by_columns(x: Tensor, grid: tuple[int, int], visible: Tensor | None) -> Tensor:
    """Tokens (B, L, D) of a grid's rows, one after another, with its columns one after another; (B, V, D) of the
    `visible` patches alone."""
    if visible is None:
        return x.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    return gather_patches(x, _column_order(visible, grid))


def _by_rows(x: Tensor, grid: tuple[int, int], visible: Tensor | None) -> Tensor:
    """The inverse of `_by_columns`."""
    if visible is None:
        return x.unflatten(1, (grid[1], grid[0])).transpose(1, 2).flatten(1, 2)
    return gather_patches(x, _column_order(visible, grid).argsort(1))


def _column_order(visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which of the `visible` patches (B, V) come one after another by columns: int64 (B, V)."""
    rows, columns = grid
    return (visible % columns * rows + visible // columns).argsort(1)
