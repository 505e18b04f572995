"""The operators of a state space layer: the selective scan and the causal convolution, one file a backend."""

from ssamba.ops.conv import causal_conv_silu
from ssamba.ops.scan import BACKENDS, resolve_backend, selective_scan

__all__ = ["BACKENDS", "causal_conv_silu", "resolve_backend", "selective_scan"]
