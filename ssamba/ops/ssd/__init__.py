"""Mamba-2's recurrence (state space duality) in both directions: its operator, the dual form and the CPU's kernels.
Imported by `ssamba.ops`, for the rest of the package; its backends, by `ssamba.ops.backends` alone."""

from ssamba.ops.ssd.operator import bidirectional_ssd

__all__ = ["bidirectional_ssd"]
