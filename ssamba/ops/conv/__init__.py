"""The causal depthwise convolution and its SiLU, in one direction and in both: its operators, a file for each backend.
Imported by `ssamba.ops`, for the rest of the package; its backends, by `ssamba.ops.backends` alone."""

from ssamba.ops.conv.operator import bidirectional_conv_silu, causal_conv_silu

__all__ = ["bidirectional_conv_silu", "causal_conv_silu"]
