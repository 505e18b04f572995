"""What stands on an encoder: the pretraining heads, a clip classifier, and a head that answers hop by hop.

Shapes: B batch, T frames, M mel bins, F and P grid sizes in frequency and time, L = F * P patch tokens, N masked
patches or hops of a clip, K pixels of a patch, D width, C classes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.batch_norm import BatchNorm
from ssamba.models.decoder import PatchDecoder
from ssamba.models.encoder import AudioEncoder, Encoded
from ssamba.models.patches import gather_patches, masked_places, visible_places
from ssamba.models.pools import build_pool


class MaskedPrediction(NamedTuple):
    """What is said of the masked patches of B clips.

    Attributes:
        contrastive: by the discriminative head of the paper, (B, N, K).
        reconstruction: by the generative one, (B, N, K).
        target: the patches, (B, N, K).
        hidden: bool (B, N), which of the N are masked patches, where clips have unequal numbers of them; None: all.
        places: int64 (B, N), which of the L patches they are.
        more: by the further heads, each by its name, of whatever they speak.
    """

    contrastive: Tensor
    reconstruction: Tensor
    target: Tensor
    hidden: Tensor | None
    places: Tensor
    more: dict[str, Tensor]


class MaskedPatchModel(nn.Module):
    """An encoder with the discriminative and the generative head of SSAMBA section 2.3; heads read one encoder pass.

    Args:
        encoder: what is pretrained.
        more_heads: further heads that pretraining needs and no exported model has: `head(tokens, encoded)`, of the
            tokens of the masked patches (B, N, D) and of what the encoder gives; with a decoder, of all patches, the
            masked ones by the decoder.
        decoder: fills in the masked patches, and the encoder gets the visible ones alone; None: the encoder gets all,
            the masked ones behind its mask token, and its own tokens are what heads read.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        more_heads: Mapping[str, nn.Module] | None = None,
        decoder: PatchDecoder | None = None,
    ) -> None:
        super().__init__()
        width, pixels = encoder.hidden_size, encoder.projection.in_features
        self.encoder = encoder
        self.contrastive_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels))
        self.reconstruction_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels))
        self.more_heads = nn.ModuleDict(more_heads)
        self.decoder = decoder

    def forward(
        self,
        log_mel: Tensor,
        mask: Tensor,
        masked: int | None = None,
        own: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> MaskedPrediction:
        """Predict what is hidden.

        Args:
            log_mel: (B, T, M).
            mask: bool (B, L).
            masked: N, how many are True of a clip. None: they are counted, for which a GPU has to finish what it does.
            own: bool (B, L), the patches that are no padding: clips that have some may have fewer than `masked` hidden,
                which is not None. None: all.
            kept: as of the encoder.
        """
        places = masked_places(mask, masked)
        patch_shape = self.encoder.patch_shape
        if self.decoder is None:
            encoded = self.encoder(log_mel, mask, kept)
            tokens = gather_patches(encoded.tokens, places)
        else:
            visible = visible_places(mask, places.shape[1], own)
            encoded = self.encoder(log_mel, None, kept, visible)
            grid = patch_shape.grid(log_mel.shape[2], log_mel.shape[1])
            tokens = self.decoder(encoded.tokens, visible, places, grid)
            if self.more_heads:
                encoded = encoded._replace(tokens=_in_order(mask.shape[1], (places, tokens), (visible, encoded.tokens)))
        target = gather_patches(patch_shape.cut(log_mel), places)
        hidden = None if own is None else mask.gather(1, places)
        more = {name: head(tokens, encoded) for name, head in self.more_heads.items()}
        return MaskedPrediction(
            self.contrastive_head(tokens), self.reconstruction_head(tokens), target, hidden, places, more
        )


def _in_order(patches: int, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Tokens of some patches each, with which of the L patches they are: (B, N) and (B, N, D) -> (B, L, D). Of a patch
    that several parts have, the last one counts; one that none has, of padding, is zero."""
    first = parts[0][1]
    whole = first.new_zeros(len(first), patches, first.shape[2])
    for places, tokens in parts:
        whole = whole.scatter(1, places.unsqueeze(-1).expand_as(tokens), tokens.to(whole.dtype))
    return whole


HEAD_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": BatchNorm,
    "none": lambda size: nn.Identity(),
}
"""What stands between a pool and the linear layer."""


class AudioClassifier(nn.Module):
    """An encoder, a pool, a norm and a linear layer (SSAST section 2.4).

    Args:
        encoder: what the pool reads.
        num_labels: C.
        pooling, segments, pool_padding: name, segments and padding of `build_pool`.
        head_norm: of `HEAD_NORMS`: SSAST's and SSAMBA's is layer, AuM (arXiv 2406.03344) has none.

    Raises:
        ValueError: a pool or a norm that there is not, or no segment.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        num_labels: int,
        pooling: str,
        head_norm: str = "layer",
        segments: int = 4,
        pool_padding: bool = False,
    ) -> None:
        super().__init__()
        if head_norm not in HEAD_NORMS:
            raise ValueError(f"head_norm is {head_norm!r}; expected one of {', '.join(HEAD_NORMS)}")
        self.encoder, self.num_labels, self.head_norm = encoder, num_labels, head_norm
        self.pool = build_pool(pooling, encoder.grid[0], encoder.hidden_size, segments, pool_padding)
        linear = nn.Linear(self.pool.size, num_labels)
        nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        # The linear layer is head.1 either way.
        self.head = nn.Sequential(HEAD_NORMS[head_norm](self.pool.size), linear)

    def classify(self, encoded: Encoded, frames: Tensor | None = None) -> Tensor:
        """What an encoder of this one's grid gives -> logits (B, C); `frames` as of `forward`."""
        columns = None
        if frames is not None:
            columns = self.encoder.patch_shape.own_columns(frames, encoded.tokens.shape[1] // self.pool.rows)
        logits: Tensor = self.head(self.pool(encoded, columns))
        return logits

    def forward(self, log_mel: Tensor, frames: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            log_mel: (B, T, M), with the mel bins that the encoder is made for.
            frames: int64 (B,), how many of the T are a clip's own; those after them are padding. None: all.
            kept: as of the encoder.

        Returns:
            Logits (B, C), of a `TokenClassifier` (B, N, C).
        """
        return self.classify(self.encoder(log_mel, None, kept), frames)


class TokenClassifier(AudioClassifier):
    """An answer for each hop of a clip, of any length: labels of stretches of time, or the characters that are said.

    A hop is so many columns of patches, whose tokens a pool makes one vector of, as `AudioClassifier` does of a whole
    clip; norm and linear layer are shared by all hops. The encoder sees the clip, so a hop is told by what comes
    before and after it, too.

    Args:
        encoder, num_labels, pooling, head_norm, segments: as of `AudioClassifier`; a pool that is `in_time`, and a norm
            that knows of one hop alone, which batch does not.
        hop_columns: columns of patches of a hop.

    Raises:
        ValueError: a pool that has no place in time, as that of class tokens, the norm batch, or no column.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        num_labels: int,
        pooling: str,
        hop_columns: int,
        head_norm: str = "layer",
        segments: int = 4,
    ) -> None:
        if hop_columns < 1:
            raise ValueError(f"hop_columns is {hop_columns}; expected at least 1")
        if head_norm == "batch":
            raise ValueError("head_norm is batch, which is of whole clips; expected layer or none")
        super().__init__(encoder, num_labels, pooling, head_norm, segments)
        if not self.pool.in_time:
            raise ValueError(f"pooling is {pooling!r}, which has no place in time; expected another pool")
        self.hop_columns = hop_columns

    @property
    def hop_frames(self) -> int:
        """Frames from one answer to the next."""
        return self.hop_columns * self.encoder.patch_shape.time_stride

    def hops(self, frames: Tensor, columns: int) -> Tensor:
        """How many hops of a clip's `columns` begin within so many of its frames (B,): int64 (B,), at least 1."""
        own = self.encoder.patch_shape.own_columns(frames, columns)
        return (own + self.hop_columns - 1).div(self.hop_columns, rounding_mode="floor")

    def classify(self, encoded: Encoded, frames: Tensor | None = None) -> Tensor:
        """What an encoder of this one's grid gives -> logits (B, N, C), N = ceil(P / hop_columns). Those of the hops
        after `hops` are of padding."""
        tokens, size = encoded.tokens.unflatten(1, (self.pool.rows, -1)), self.hop_columns  # (B, F, P, D)
        batch, rows, columns, width = tokens.shape
        hops = -(-columns // size)
        tokens = F.pad(tokens, (0, 0, 0, hops * size - columns)).unflatten(2, (hops, size))
        tokens = tokens.transpose(1, 2).reshape(batch * hops, rows * size, width)
        own = torch.full((batch,), columns, device=tokens.device)
        if frames is not None:
            own = self.encoder.patch_shape.own_columns(frames.to(tokens.device), columns)
        # A hop of padding has a column, since a pool of nothing has no value.
        own_columns = (own.unsqueeze(1) - size * torch.arange(hops, device=tokens.device)).clamp(1, size).flatten()
        vectors = self.pool(Encoded(tokens, encoded.class_tokens), own_columns)
        logits: Tensor = self.head(vectors)
        return logits.unflatten(0, (batch, hops))


def parameter_count(module: nn.Module) -> int:
    """How many numbers `module` learns; frozen ones count too."""
    return sum(parameter.numel() for parameter in module.parameters())
