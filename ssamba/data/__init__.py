"""Shards of recordings: made, found, and read as a pipeline of webdataset (`pipeline`)."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Not imported above: what makes shards needs no torch.
    if name == "pipeline":
        from ssamba.data.stream import pipeline

        return pipeline
    raise AttributeError(f"module 'ssamba.data' has no attribute {name!r}")
