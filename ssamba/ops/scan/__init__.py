"""The selective scan of Mamba, in one direction and in both: its operators, and a file for each backend. Imported by
`ssamba.ops`, for the rest of the package; its backends, by `ssamba.ops.backends` alone."""

from ssamba.ops.scan.operator import MAX_STATES, bidirectional_scan, selective_scan

__all__ = ["MAX_STATES", "bidirectional_scan", "selective_scan"]
