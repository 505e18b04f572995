"""The notebooks of examples/ from top to bottom, with few steps: what they make, draw and say."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

from ssamba.data.prepare.recordings import Recording

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LABELS = ["falling", "pulses", "rising", "tone"]

# The first cell has the notebook's settings.
PROGRAM = """
notebook, settings, answer = sys.argv[1:]
settings, names = json.loads(settings), {}
with open(notebook, encoding="utf-8") as file:
    cells = [cell for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]
for cell in cells:
    exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    if cell is cells[0]:
        assert settings.keys() <= names.keys()
        names.update(settings)
plt = names["plt"]
drawn = [[axis.has_data() for axis in plt.figure(number).axes] for number in plt.get_fignums()]
print(json.dumps({"drawn": drawn, **eval(answer, names)}, default=str))
"""


def run(notebook: str, folder: Path, answer: str, **settings: Any) -> dict[str, Any]:
    """All cells, in a folder, one after another; the answer is an expression in the notebook's names."""
    words = [str(EXAMPLES / notebook), json.dumps(settings), answer]
    with Forked(words, folder.with_name(f"{folder.name}-process"), PROGRAM, {"MPLBACKEND": "agg"}, folder) as process:
        assert process.wait() == 0, process.err.read_text()
    answered: dict[str, Any] = json.loads(process.out.read_text().splitlines()[-1])
    return answered


def test_from_recordings_to_predictions(tmp_path: Path) -> None:
    answer = "dict(scores=scores, predictions={str(path): best for path, best in predictions.items()})"
    made = run("pretrain_and_finetune.ipynb", tmp_path, answer, PRETRAIN_STEPS=3, FINETUNE_STEPS=2)
    work = tmp_path / "runs" / "notebook"
    for folder, steps in (("pretrained", 3), ("finetuned", 2)):
        record = json.loads((work / folder / "run.json").read_text())
        assert record["steps"] == steps and (work / folder / "model" / "model.safetensors").is_file()
    baseline = record["baseline"]
    written = {"fine-tuned": record["test"], "without a network": baseline["scores"]}
    for name, scores in {**written, "difference": baseline["difference"]}.items():
        for part in ("accuracy", "accuracy_low", "accuracy_high"):
            assert made["scores"][name][part] == scores[part]
    assert 0 <= record["test"]["accuracy_low"] <= record["test"]["accuracy"] <= record["test"]["accuracy_high"] <= 1
    assert baseline["scores"]["accuracy"] > 0.5  # of four kinds of sounds
    assert [Path(path).parent.name for path in made["predictions"]] == LABELS
    assert all((tmp_path / path).is_file() for path in made["predictions"])
    assert set(made["predictions"].values()) <= set(LABELS)
    assert made["drawn"] == [[True] * 3, [True] * 2, [True]]


ANSWER = (
    "dict(error=error, shares=shares, chance=chance, without=without, names=[str(name) for name in names], "
    "kept=bool((patches == filled)[~mask].all()), filled=bool((patches != filled)[mask].any(1).all()), "
    "near=rows.tolist(), cosines=cosines.tolist(), hidden=mask.float().mean().item(), model=MODEL)"
)


def check_looked_into(made: dict[str, Any]) -> None:
    assert math.isfinite(made["error"]) and made["kept"] and made["filled"]
    assert made["hidden"] == pytest.approx(0.5, abs=0.05)
    assert all(0 <= share <= 1 for share in (*made["shares"], made["without"]))
    for index, (near, cosines) in enumerate(zip(made["near"], made["cosines"], strict=True)):
        assert index not in near and len(set(near)) == 3
        assert cosines == sorted(cosines, reverse=True) and max(map(abs, cosines)) < 1.0001
    assert all(all(axes) for axes in made["drawn"]) and len(made["drawn"]) == 4


def test_an_encoder_that_is_pretrained_in_the_notebook(tmp_path: Path) -> None:
    made = run("look_into_an_encoder.ipynb", tmp_path, ANSWER, PRETRAIN_STEPS=2)
    check_looked_into(made)
    assert (tmp_path / made["model"] / "model" / "model.safetensors").is_file()
    assert len(made["names"]) == 120 and {Path(name).parent.name for name in made["names"]} == set(LABELS)
    assert made["chance"] == pytest.approx(29 / 119)
    assert len(made["shares"]) == 3 and max(made["shares"]) > 2 * made["chance"]


def test_an_encoder_and_recordings_of_ones_own(
    recordings: dict[str, list[Recording]], pretrained: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = recordings["test"][0].path.parent
    model = str(pretrained("ssast"))  # with several rows of patches
    made = run("look_into_an_encoder.ipynb", tmp_path, ANSWER, RECORDINGS=str(folder), MODEL=model)
    check_looked_into(made)
    assert made["model"] == model and not list(tmp_path.iterdir())
    assert made["names"] == sorted(path.name for path in folder.glob("*.wav"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs_and_use_what_is_public(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    text = "\n".join("".join(cell["source"]) for cell in code)
    assert "import" in text and not re.findall(r"\b_(?!_)\w+", text)
