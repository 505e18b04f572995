"""Self-supervised audio pretraining with bidirectional state space models.

Users import `SsambaModel` from here, and the rest from its room; rooms import each other as tests/test_imports.py says.
"""

import os
from typing import Any

# After each parallel loop OpenMP's threads, which the scan shares with torch, spin for milliseconds before they sleep.
# Where data workers, ranks or a sweep share the cores, that takes them from whoever has work. A process that has its
# cores for itself is faster with ACTIVE. It is read when torch is imported, so this helps where that comes later, as in
# the `ssamba` command; elsewhere set it yourself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    # Not imported above: `ssamba --help` should not wait for torch.
    if name == "SsambaModel":
        from ssamba.hub import SsambaModel

        return SsambaModel
    raise AttributeError(f"module 'ssamba' has no attribute {name!r}")
