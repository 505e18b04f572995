"""The operators under the encoders: a folder for each, with one public function and one file a backend, over what they
share here. Imports torch and `ssamba.files`; `ssamba.models` calls it, and whoever chooses or measures backends."""

from ssamba.ops.backends import BACKENDS, resolve_backend
from ssamba.ops.conv import bidirectional_conv_silu, causal_conv_silu
from ssamba.ops.scan import bidirectional_scan, selective_scan
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
