"""What comes with the package and is no module of it: the recipes, and the scripts that prepare data sets."""

import ast
from pathlib import Path

_PACKAGE = Path(__file__).parent


def packaged(name: str) -> Path:
    """The folder "recipes" or "data_prep": in the package where that was installed, in a checkout beside it."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def preparations() -> dict[str, Path]:
    """The scripts of data_prep, by name."""
    return {path.stem: path for path in sorted(packaged("data_prep").glob("*.py")) if path.stem != "__init__"}


def first_line(script: Path) -> str:
    """Of what a script says of itself."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def recipe_files() -> dict[str, Path]:
    """Recipes, sweeps and job scripts by their names within the folder, without the ending of a YAML:
    "pretrain/fsdd", "slurm/sweep.sh"."""
    folder = packaged("recipes")
    return {
        str(path.relative_to(folder).with_suffix("") if path.suffix == ".yaml" else path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".yaml", ".sh", ".sbatch")
    }
