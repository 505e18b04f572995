"""Self-supervised audio pretraining with bidirectional state space models."""

import os

# After each parallel loop torch's OpenMP threads spin for milliseconds before they sleep, on the very cores that the
# scan's threads then want: a training step on two cores took a third longer. It is read when torch is imported, so
# this helps where that comes later, as in the `ssamba` command; elsewhere set it yourself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
