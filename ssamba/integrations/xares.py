"""Any model as an encoder of X-ARES, the eXtensive Audio Representation and Evaluation Suite.

X-ARES takes the columns of `Timeline` and pools them itself, whatever the model's own pool. It builds the encoder of a
file without arguments, and wants one name in that file to end in Encoder:

    from ssamba.integrations import xares

    class MyEncoder(xares.SsambaEncoder):
        def __init__(self) -> None:
            super().__init__("runs/pretrain-mine")

Shapes: B batch, S samples, N columns, F rows of patches, D width of a token.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ssamba.integrations.timeline import Timeline


class SsambaEncoder(nn.Module):
    """X-ARES's encoder: sampling_rate in Hz, output_dim (F * D), hop_size_in_ms from one column to the next.

    Args:
        path: a model folder, a run folder, or a model of the Hub.
        max_hop_ms: the longest hop from one column to the next, as in `Timeline`. 160 is the hop of patches of 16
            frames, four times cheaper than 50, and enough where a whole clip has one label.

    Raises:
        UserError: no such model.
    """

    def __init__(self, path: str | Path, max_hop_ms: float = 50.0) -> None:
        super().__init__()
        self.timeline = Timeline.from_pretrained(path, max_hop_ms)
        self.sampling_rate = self.timeline.sampling_rate
        self.output_dim = self.timeline.size
        self.hop_size_in_ms = self.timeline.hop_ms

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """(B, S) or (S,), float of full scale 1 -> float32 (B, N, F * D), N the hops that begin in the S samples."""
        return self.timeline(list(audio.reshape(-1, audio.shape[-1])))[0]
