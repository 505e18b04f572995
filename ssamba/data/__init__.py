"""What training reads: shards as a pipeline of webdataset (`pipeline`), their order, their labels. Imported by whatever
trains or scores models; imports `ssamba.data.shards`, and never `ssamba.data.prepare`, which makes shards."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Not imported above: what makes shards needs no torch.
    if name == "pipeline":
        from ssamba.data.stream import pipeline

        return pipeline
    raise AttributeError(f"module 'ssamba.data' has no attribute {name!r}")
