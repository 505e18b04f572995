"""What fills in hidden patches, where an encoder gets the visible ones alone (MAE, arXiv 2111.06377).

Shapes: B batch, F and P grid sizes in frequency and time, L = F * P patches, V visible and N hidden patches of a clip,
D width of the encoder, W width of the decoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.encoder import AudioEncoder
from ssamba.models.patches import fit_positions, gather_patches


class DecoderLayer(nn.Module):
    """x + GELU(LayerNorm(convolution of x)) over the grid, (B, W, F, P), as in data2vec 2.0 (arXiv 2212.07525)."""

    def __init__(self, width: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        filtered = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + F.gelu(filtered)


class PatchDecoder(nn.Module):
    """The encoder's tokens of visible patches at their places, a learned token with its position at all others, and
    convolutions over the grid: tokens of the hidden patches.

    Args:
        encoder_width: D.
        grid: F and P of the clips it is made for; other grids work as they do for the encoder.
        hidden_size: W.
        num_hidden_layers: how many convolutions.
    """

    def __init__(self, encoder_width: int, grid: tuple[int, int], hidden_size: int, num_hidden_layers: int) -> None:
        super().__init__()
        # What rebuilds this module, beside the encoder that it belongs to.
        self.arguments = {"hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers}
        self.embedding = nn.Linear(encoder_width, hidden_size)
        self.mask_token = nn.Parameter(torch.empty(hidden_size))
        self.positions = nn.Parameter(torch.empty(*grid, hidden_size))
        kernel = (1, 7) if grid[0] == 1 else (3, 3)  # as data2vec 2.0 has them for audio and for images
        self.layers = nn.ModuleList(DecoderLayer(hidden_size, kernel) for _ in range(num_hidden_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.projection = nn.Linear(hidden_size, encoder_width)
        for parameter in (self.mask_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, visible: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of the hidden patches, (B, N, D).

        Args:
            tokens: (B, V, D), the encoder's.
            visible: int64 (B, V), which of the L patches they are.
            hidden: int64 (B, N), which are asked for.
            grid: F and P.
        """
        embedded = self.embedding(tokens)
        filler = (self.mask_token + fit_positions(self.positions, *grid).flatten(0, 1)).to(embedded.dtype)
        index = visible.unsqueeze(-1).expand_as(embedded)
        x = filler.expand(len(tokens), -1, -1).scatter(1, index, embedded)
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)  # in memory a patch's numbers stay side by side
        for layer in self.layers:
            x = layer(x)
        filled: Tensor = self.projection(self.norm(gather_patches(x.flatten(2).transpose(1, 2), hidden)))
        return filled


def decoder_of(encoder: AudioEncoder) -> PatchDecoder:
    """A new decoder for an encoder: three convolutions of a third of its width, so that a step of a small encoder, too,
    is shorter by what the encoder is spared."""
    return PatchDecoder(encoder.hidden_size, encoder.grid, encoder.hidden_size // 3, 3)
