"""What stands on an encoder: the pretraining heads and a clip classifier.

Shapes: B batch, L patch tokens, N masked patches of a clip, K pixels of a patch, D width, C classes.
"""

from typing import NamedTuple

from torch import Tensor, nn

from ssamba.models.encoder import AudioEncoder, Encoded
from ssamba.models.patches import gather_patches, masked_places

POOLINGS = ("mean", "class")


class MaskedPrediction(NamedTuple):
    """contrastive, reconstruction: what the two heads say of the masked patches; target: the patches; all (B, N, K)."""

    contrastive: Tensor
    reconstruction: Tensor
    target: Tensor


class MaskedPatchModel(nn.Module):
    """An encoder with the discriminative and the generative head of SSAMBA section 2.3; both read one encoder pass."""

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        width, pixels = encoder.hidden_size, encoder.projection.in_features
        self.encoder = encoder
        self.contrastive_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels))
        self.reconstruction_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels))

    def forward(self, log_mel: Tensor, mask: Tensor, masked: int | None = None) -> MaskedPrediction:
        """log_mel (B, T, M), mask bool (B, L) with equally many True a clip (`masked`, if it is known) -> (B, N, K)
        each."""
        places = masked_places(mask, masked)
        tokens = gather_patches(self.encoder(log_mel, mask).tokens, places)
        target = gather_patches(self.encoder.patch_shape.cut(log_mel), places)
        return MaskedPrediction(self.contrastive_head(tokens), self.reconstruction_head(tokens), target)


class AudioClassifier(nn.Module):
    """An encoder, the mean of its patch or class tokens, LayerNorm and a linear layer (SSAST section 2.4).

    Without `head_norm` the linear layer stands alone, as in AuM (arXiv 2406.03344).
    """

    def __init__(self, encoder: AudioEncoder, num_labels: int, pooling: str, head_norm: bool = True) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
        self.encoder, self.pooling = encoder, pooling
        self.num_labels = num_labels
        linear = nn.Linear(encoder.hidden_size, num_labels)
        nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        # The linear layer is head.1 either way.
        self.head = nn.Sequential(nn.LayerNorm(encoder.hidden_size) if head_norm else nn.Identity(), linear)

    def pool(self, encoded: Encoded) -> Tensor:
        """A vector a clip, (B, D)."""
        return (encoded.tokens if self.pooling == "mean" else encoded.class_tokens).mean(1)

    def classify(self, encoded: Encoded) -> Tensor:
        """What the encoder gives -> logits (B, C)."""
        logits: Tensor = self.head(self.pool(encoded))
        return logits

    def forward(self, log_mel: Tensor) -> Tensor:
        """log_mel (B, T, M) -> logits (B, C)."""
        return self.classify(self.encoder(log_mel))


def parameter_count(module: nn.Module) -> int:
    """How many numbers `module` learns; frozen ones count too."""
    return sum(parameter.numel() for parameter in module.parameters())
