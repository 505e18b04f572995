"""The operators under the encoders: one public function an operator, one file a backend."""

from ssamba.ops.conv import bidirectional_conv_silu, causal_conv_silu
from ssamba.ops.scan import BACKENDS, bidirectional_scan, resolve_backend, selective_scan
from ssamba.ops.ssd import bidirectional_ssd

__all__ = [
    "BACKENDS",
    "bidirectional_conv_silu",
    "bidirectional_scan",
    "bidirectional_ssd",
    "causal_conv_silu",
    "resolve_backend",
    "selective_scan",
]
