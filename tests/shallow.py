"""Imported, it leaves the encoders of the size nano two layers: what a run does with them does not depend on how many
there are, and its time does."""

import copy

from ssamba.models.encoder import SIZES

WHOLE = copy.deepcopy(SIZES)
for sizes in SIZES.values():
    sizes["nano"]["num_hidden_layers"] = 2
