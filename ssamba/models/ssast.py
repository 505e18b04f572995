"""The transformer encoder of SSAST (arXiv 2110.09784, section 2.1): a DeiT-style ViT.

Shapes: B batch, L tokens, D width, H heads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.stack import Epsilon, Positive, Stack, Width


class SsastLayer(nn.Module):
    """Pre-norm attention and a GELU network of four times the width, each with its residual; `kept` (2, B), of the
    two branches, as of `Stack`."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D / H)
        attention = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + Stack.branch(attention, kept, 0)
        return x + Stack.branch(self.fc2(F.gelu(self.fc1(self.norm2(x)))), kept, 1)


class SsastStack(Stack):
    """SSAST's layers and final norm over embedded tokens, (B, L, D) -> (B, L, D); class and distillation token lead."""

    sizes = {
        "nano": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "layer_norm_eps": 1e-6},
        "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "layer_norm_eps": 1e-6},
        "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "layer_norm_eps": 1e-6},
        "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "layer_norm_eps": 1e-6},
    }
    num_class_tokens = 2
    branches = 2

    def __init__(
        self, hidden_size: Width, num_hidden_layers: Positive, num_attention_heads: Positive, layer_norm_eps: Epsilon
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {num_attention_heads} attention heads")
        self.layers = nn.ModuleList(
            SsastLayer(hidden_size, num_attention_heads, layer_norm_eps) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None, kept: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(self.run_layers(x, hidden_states, kept))
        self.keep(hidden_states, out)
        return out
