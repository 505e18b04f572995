"""Any model as an upstream of s3prl, the toolkit of SUPERB:

    from s3prl import hub, nn
    from ssamba.integrations.s3prl import UpstreamExpert
    hub.ssamba = UpstreamExpert
    upstream = nn.S3PRLUpstream("ssamba", path_or_url="runs/pretrain-mine")

Its downstream models pool the columns themselves, whatever the model's own pool.

Shapes: B batch, S samples, N columns, F rows of patches, D width of a token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.integrations.timeline import Timeline

_S3PRL_HZ = 16000  # of every waveform that s3prl gives


class UpstreamExpert(nn.Module):
    """s3prl's upstream: lists of waveforms in, the hidden states of every layer out, trainable.

    Args:
        ckpt: a model folder, a run folder, or a model of the Hub.
        max_hop_ms: the longest hop from one column to the next, as in `Timeline`. 160 is the hop of patches of 16
            frames, four times cheaper than 50, and enough where a whole utterance has one label.
        options: what s3prl gives every upstream (refresh, model_config); a model folder needs none of it.

    Raises:
        UserError: no such model, or one of another sampling rate than s3prl's.
    """

    def __init__(self, ckpt: str | Path, max_hop_ms: float = 50.0, **options: Any) -> None:
        super().__init__()
        self.timeline = Timeline.from_pretrained(ckpt, max_hop_ms)
        if self.timeline.sampling_rate != _S3PRL_HZ:
            raise UserError(f"{ckpt} takes {self.timeline.sampling_rate} Hz; s3prl gives every upstream {_S3PRL_HZ} Hz")

    def get_downsample_rates(self, key: str) -> int:
        """Samples a column, of every layer: a clip of S samples has ceil(S / rate) columns, as s3prl counts them."""
        return self.timeline.hop_samples

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Encode clips.

        Args:
            wavs: B times (S,), float of full scale 1, at 16 kHz.

        Returns:
            hidden_states: for each layer float32 (B, N, F * D) with N of the longest clip, zeros after the end of the
            others; last_hidden_state: the last of them.
        """
        hidden = self.timeline(wavs, range(self.timeline.model.num_hidden_states))
        return {"hidden_states": hidden, "last_hidden_state": hidden[-1]}
