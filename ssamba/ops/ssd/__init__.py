"""Mamba-2's recurrence (state space duality) in both directions: its operator, the dual form and the CPU's kernels.
`ssamba.ops` gives it to the rest of the package; backends are loaded by `ssamba.ops.backends` alone."""

from ssamba.ops.ssd.operator import bidirectional_ssd

__all__ = ["bidirectional_ssd"]
