"""Which part may import which, read from the source, and that no file knows the machine that it was written on."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssamba"

# Part -> the parts that it may import, itself aside. A part is a module or a folder of ssamba/.
LEAVES = {"errors", "files", "launch", "parts", "printable", "progress", "shell", "values"}
TORCH_ALONE = {"frames", "masking", "losses", "schedules"}
MODELS = {"ops", *LEAVES}
DATA = {"audio", "frames", "recordings", "folders", "jobs", *LEAVES}
EVALUATION = {"models", "data", *MODELS, *DATA, *TORCH_ALONE}
TRAINING = {"evaluation", "objectives", *EVALUATION}
BUILD = {"training", "config", "features", "teachers", *TRAINING}
FEATURES = {"audio", "frames", "recordings", "folders", "models", *MODELS}
# What uses a trained model knows nothing of how it was trained.
INFERENCE = {"features", "hub", *FEATURES}
ALLOWED: dict[str, set[str]] = {
    "errors": {"printable"},
    "files": {"errors", "printable"},
    "launch": {"errors"},
    "parts": {"errors", "packaged"},
    "printable": set(),
    "progress": {"errors", "launch", "printable"},
    "shell": {"errors", "printable"},
    "values": {"errors", "files"},
    "recipe_yaml": set(),
    "config": {"recipe_yaml", *LEAVES},
    "audio": LEAVES,
    "frames": set(),
    "recordings": {"errors"},
    "folders": {"recordings", "errors"},
    "jobs": {"errors"},
    "masking": {"errors"},
    "losses": {"errors"},
    "schedules": {"errors"},
    "objectives": {"audio", "models", "losses", *MODELS},
    "origin": {"config", *MODELS, "models"},
    "comparison": {"config", "origin", *EVALUATION, "evaluation"},
    "ops": LEAVES,
    "models": MODELS,
    "data": DATA,
    "evaluation": EVALUATION,
    "training": TRAINING,
    "build": BUILD,
    "sweep": {"config", "recipe_yaml", *LEAVES},
    "protocols": {"build", "comparison", "inference", "sweep", *INFERENCE, *BUILD},
    "train": {"build", "comparison", "origin", "protocols", "inference", *INFERENCE, *BUILD},
    "commands": {
        "train",
        "sweep",
        "build",
        "comparison",
        "protocols",
        "inference",
        "demo",
        "export",
        "doctor",
        "packaged",
        "tasks",
        *INFERENCE,
        *BUILD,
    },
    "packaged": set(),
    "demo": {"cli", "comparison", "packaged", "evaluation", *LEAVES},
    "cli": {"commands", "training", *LEAVES},
    "features": FEATURES,
    "teachers": {"data", *INFERENCE},
    "hub": INFERENCE,
    "inference": {*INFERENCE, "evaluation"},
    "doctor": BUILD,
    "tasks": set(),
    "export": INFERENCE,
    "integrations": INFERENCE,
}
# Module -> the same, where it may import less than its folder: a program runs without what builds a model.
LESS = {"export/program.py": {"ops", *LEAVES}}
# Room of ssamba/data -> the rooms that it may import, itself aside. What makes shards is for the command line and
# data_prep alone.
ROOMS: dict[str, set[str]] = {"data": {"shards"}, "shards": set(), "prepare": {"shards"}}
MAY_PREPARE = {"commands", "doctor"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))


def imported(path: Path, module_level: bool = False) -> Iterator[str]:
    """The dotted names that a file imports; with module_level, those alone that importing it imports."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if module_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            # `from ssamba import audio` imports ssamba.audio.
            module = str(node.module)
            in_a_folder = module.split(".")[0] == "ssamba" and ROOT.joinpath(*module.split(".")).is_dir()
            yield from (f"{module}.{alias.name}" for alias in node.names) if in_a_folder else [module]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@each_source
def test_imports_point_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert set(imported(path, module_level=True)) <= set(sys.stdlib_module_names)
        return
    within = str(path.relative_to(PACKAGE))
    allowed = LESS[within] if within in LESS else ALLOWED[part(path)] | {part(path)}
    used = {name.split(".")[1] for name in imported(path) if name.startswith("ssamba.")}
    assert used <= allowed


def room(name: str) -> str:
    """Of a module of ssamba.data; what is in no folder of it is what training reads."""
    below = name.split(".")[2]
    return below if below in ROOMS else "data"


@each_source
def test_what_reads_shards_imports_nothing_that_makes_them(path: Path) -> None:
    used = {room(f"{name}.") for name in imported(path) if name.split(".")[:2] == ["ssamba", "data"]}
    if part(path) == "data":
        mine = room(".".join(("ssamba", *path.relative_to(PACKAGE).parts)))
        assert used <= ROOMS[mine] | {mine}
    elif part(path) not in MAY_PREPARE:
        assert "prepare" not in used


@pytest.mark.parametrize("name", sorted(TORCH_ALONE))
def test_pure_parts_need_torch_alone(name: str) -> None:
    used = {name.split(".")[0] for name in imported(PACKAGE / f"{name}.py")}
    assert used - set(sys.stdlib_module_names) <= {"torch", "ssamba"}


def test_the_schema_imports_no_torch() -> None:
    files = (PACKAGE / "config").glob("*.py")
    used = {name.split(".")[0] for path in files for name in imported(path)}
    assert used - set(sys.stdlib_module_names) <= {"omegaconf", "ssamba"}


# Modules of ssamba/ops and its folders that are imported when their backend is chosen, and the optional packages that
# they bring in.
ADAPTORS = {
    "mamba_ssm_kernels": {"mamba_ssm", "causal_conv1d"},
    "triton_kernels": {"triton"},
    "cpu": {"numba"},
    "kernels": set(),
    "kernel_cache": {"numba", "llvmlite"},
    "simd": {"numba", "llvmlite"},
}
OPS = PACKAGE / "ops"


@each_source
def test_optional_packages_wait_until_they_are_asked_for(path: Path) -> None:
    used = {name.split(".")[0] for name in imported(path, module_level=True)}
    optional = {"mamba_ssm", "causal_conv1d", "numba", "triton"}
    optional |= {"wandb", "pyarrow", "distributed", "av", "datasets", "lhotse", "transformers"}
    assert not used & optional - (ADAPTORS.get(path.stem, set()) if path.is_relative_to(OPS) else set())


@each_source
def test_adaptors_wait_too(path: Path) -> None:
    if not path.is_relative_to(OPS) or path.stem not in ADAPTORS:
        used = {name for name in imported(path, module_level=True) if name.startswith("ssamba.ops.")}
        assert not {name.rpartition(".")[2] for name in used} & ADAPTORS.keys()


def test_every_folder_says_what_lives_there_and_who_may_import_it() -> None:
    for folder in {path.parent for path in SOURCES}:
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert said and re.search(r"\bimport", said, re.IGNORECASE), folder


def test_no_module_has_the_name_of_a_package_that_it_adapts() -> None:
    adapted = set().union(*ADAPTORS.values())
    assert not {path.stem for path in SOURCES} & adapted


@pytest.mark.parametrize("part", ["models", "ops"])
def test_networks_know_no_lightning_and_no_recipes(part: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        used = set(imported(path))
        assert not {name.split(".")[0] for name in used} & {"lightning", "omegaconf", "webdataset"}, path


def test_the_walk_sees_what_it_must_see(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import a.b, c\nfrom d.e import f\nfrom ssamba import g\nfrom ssamba.data import prepare\nif h:\n    import i\n"
        "def j():\n    import k\nclass L:\n    import m\n    def n(self):\n        from o import p\n"
    )
    assert list(imported(source)) == ["a.b", "c", "d.e", "ssamba.g", "ssamba.data.prepare", "i", "k", "m", "o"]
    assert list(imported(source, module_level=True)) == ["a.b", "c", "d.e", "ssamba.g", "ssamba.data.prepare", "i", "m"]


# What every Unix has; a path below another folder that exists here is this machine's alone.
COMMON = {
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib64",
    "media",
    "mnt",
    "opt",
    "proc",
    "run",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
}


def texts() -> Iterator[tuple[Path, str]]:
    """The text files of the repository, this one aside."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True
    )
    if listed.returncode:
        pytest.skip("no git repository here")
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and path != Path(__file__):
            try:
                yield path, path.read_text()
            except UnicodeDecodeError:
                continue


def test_no_file_names_a_path_of_this_machine() -> None:
    homes = {"home", "root", "Users"}
    found = []
    for path, text in texts():
        for top in re.findall(r"(?<![\w.:/~})\]*$-])/(\w+)/", text):
            if top in homes or (top not in COMMON and Path("/", top).is_dir()):
                found.append((path, top))
        found += [(path, str(place)) for place in (ROOT, Path.home()) if place != Path("/") and str(place) in text]
    assert not found


def test_no_file_names_a_package_registry() -> None:
    named = re.compile(r"(?:extra-)?index-url|find-links|trusted-host|PIP_INDEX|https?://[^/\s]*(?:pypi|pythonhosted)")
    assert not [(path, named.findall(text)) for path, text in texts() if named.search(text)]


def test_openmp_is_told_to_sleep_before_torch_is_imported() -> None:
    code = "import os, sys, ssamba.cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "PASSIVE False\n"
