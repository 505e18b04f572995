"""Where the weights that a run started from come from: the recipe and the record of the run that made them."""

from pathlib import Path
from typing import Any

from ssamba.config import flat_recipe, load_recipe
from ssamba.errors import UserError
from ssamba.models.record import RECORD_NAME, read_record


def read_origin(pretrained: str | None) -> dict[str, Any] | None:
    """For run.json, as `ssamba.models.record.Origin` has it: what is known of the run that `model.pretrained` names, or
    whose model/ folder; None from scratch, and of a model that no finished run of ours has beside it."""
    if pretrained is None:
        return None
    for folder in (Path(pretrained), Path(pretrained).parent):
        if (folder / RECORD_NAME).is_file() and (folder / "recipe.yaml").is_file():
            try:
                record, recipe = read_record(folder / RECORD_NAME), load_recipe(folder)
            except UserError:  # weights need no record
                return None
            facts = {name: record[name] for name in ("seed", "steps", "training_seconds", "parameters", "data")}
            return {"recipe": flat_recipe(recipe), **facts, "origin": record.get("origin")}
    return None
