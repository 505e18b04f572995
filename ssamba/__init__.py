"""Self-supervised audio pretraining with bidirectional state space models."""

import os
from typing import Any

# After each parallel loop torch's OpenMP threads spin for milliseconds before they sleep, on the very cores that the
# scan's threads then want: a training step on two cores took a third longer. It is read when torch is imported, so
# this helps where that comes later, as in the `ssamba` command; elsewhere set it yourself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    # Not imported above: `ssamba --help` should not wait for torch.
    if name == "SsambaModel":
        from ssamba.hub import SsambaModel

        return SsambaModel
    raise AttributeError(f"module 'ssamba' has no attribute {name!r}")
