"""The Conformer encoder (arXiv 2005.08100), of torchaudio's layers: attention beside convolutions.

Shapes: B batch, L tokens, D width.
"""

from torch import Tensor, nn
from torchaudio.models import conformer

from ssamba.models.stack import Positive, Stack, Width

# SSAMBA's widths, and as many parameters within 5 %.
_NANO = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
_TINY = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 3, "intermediate_size": 768}
_SMALL = {"hidden_size": 384, "num_hidden_layers": 7, "num_attention_heads": 6, "intermediate_size": 1536}
_BASE = {"hidden_size": 768, "num_hidden_layers": 7, "num_attention_heads": 12, "intermediate_size": 3072}


class ConformerLayer(conformer.ConformerLayer):  # type: ignore[misc]  # torchaudio is not typed
    """torchaudio's layer, batch first, and its four residual branches (half a network, attention, convolution, half a
    network) times `kept` (4, B), as of `Stack`.

    No dropout, which would draw random numbers. The convolution's batch norm is a group norm over all channels and
    tokens of a clip, so that a clip does not depend on the others of its batch.
    """

    def __init__(self, width: int, heads: int, inner: int, conv_kernel: int) -> None:
        super().__init__(width, inner, heads, conv_kernel, dropout=0.0, use_group_norm=True)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        x = x + Stack.branch(0.5 * self.ffn1(x), kept, 0)
        y = self.self_attn_layer_norm(x).transpose(0, 1)
        attention = self.self_attn(y, y, y, need_weights=False)[0].transpose(0, 1)
        x = x + Stack.branch(attention, kept, 1)
        x = x + Stack.branch(self.conv_module(x), kept, 2)
        x = x + Stack.branch(0.5 * self.ffn2(x), kept, 3)
        out: Tensor = self.final_layer_norm(x)
        return out


class ConformerStack(Stack):
    """Layers over embedded tokens, (B, L, D) -> (B, L, D), each of which ends with a norm; one class token leads.

    The convolutions read tokens in their order: along time within a row of patches.
    """

    sizes = {
        name: {**size, "conv_depthwise_kernel_size": 31}
        for name, size in {"nano": _NANO, "tiny": _TINY, "small": _SMALL, "base": _BASE}.items()
    }
    num_class_tokens = 1
    branches = 4

    def __init__(
        self,
        hidden_size: Width,
        num_hidden_layers: Positive,
        num_attention_heads: Positive,
        intermediate_size: Width,
        conv_depthwise_kernel_size: Positive,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {num_attention_heads} attention heads")
        if conv_depthwise_kernel_size % 2 == 0:
            raise ValueError(f"conv_depthwise_kernel_size is {conv_depthwise_kernel_size}; expected an odd number")
        self.layers = nn.ModuleList(
            ConformerLayer(hidden_size, num_attention_heads, intermediate_size, conv_depthwise_kernel_size)
            for _ in range(num_hidden_layers)
        )

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None, kept: Tensor | None = None) -> Tensor:
        x = self.run_layers(x, hidden_states, kept)
        self.keep(hidden_states, x)
        return x
