"""A recurrent encoder to compare with: bidirectional LSTMs.

Shapes: B batch, L tokens, D width, N state size.
"""

from torch import Tensor, nn

from ssamba.models.mixer import scale_outputs
from ssamba.models.stack import Epsilon, Positive, ResidualStack, Width


class BilstmLayer(nn.Module):
    """LayerNorm, an LSTM of N cells in each direction, a projection of both; the residual sum is the stack's."""

    def __init__(self, width: int, state_size: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.lstm = nn.LSTM(width, state_size, batch_first=True, bidirectional=True)
        self.out_proj = nn.Linear(2 * state_size, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.lstm(self.norm(x))[0])
        return out


class BilstmStack(ResidualStack):
    """Layers over embedded tokens, (B, L, D) -> (B, L, D), x <- x + layer(x), and a final norm.

    One class token stands in the middle, where either direction has seen as much.
    """

    # SSAMBA's widths, and as many parameters within 5 %.
    sizes = {
        "nano": {"hidden_size": 96, "num_hidden_layers": 3, "state_size": 88, "layer_norm_eps": 1e-5},
        "tiny": {"hidden_size": 192, "num_hidden_layers": 6, "state_size": 272, "layer_norm_eps": 1e-5},
        "small": {"hidden_size": 384, "num_hidden_layers": 6, "state_size": 512, "layer_norm_eps": 1e-5},
        "base": {"hidden_size": 768, "num_hidden_layers": 6, "state_size": 1024, "layer_norm_eps": 1e-5},
    }

    def __init__(
        self, hidden_size: Width, num_hidden_layers: Positive, state_size: Width, layer_norm_eps: Epsilon
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            BilstmLayer(hidden_size, state_size, layer_norm_eps) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        scale_outputs(self.layers)
