"""The scripts of recipes/slurm: what they start is a command that this package takes, as many processes as it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssamba.cli import build_parser
from ssamba.config import load_recipe
from ssamba.launch import check_launch

SLURM = Path(__file__).parents[1] / "recipes" / "slurm"
RECIPE = SLURM.parent / "pretrain" / "audioset_librispeech_patch.yaml"
BATCH = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "9"}
# In the place of each launcher: it prints its own words.
STANDIN = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv))\n"


def launched(folder: Path, script: str, environment: dict[str, str], *words: str) -> tuple[list[str], list[str]]:
    """The words of the launcher and those of the ssamba command that a script would run."""
    for name, text in (("srun", STANDIN), ("torchrun", STANDIN), ("nvidia-smi", "#!/bin/sh\necho GPU 0\necho GPU 1\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(SLURM / script), str(RECIPE), *words]
    done = subprocess.run(command, env=path | environment, capture_output=True, text=True, check=True)
    said: list[str] = json.loads(done.stdout)
    at = said.index("ssamba")
    return said[:at], said[at + 1 :]


@pytest.mark.parametrize("path", sorted(SLURM.iterdir()), ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("script", "environment", "shape"),
    [
        ("pretrain.sbatch", BATCH, (2, 4)),
        ("torchrun.sh", {}, (1, 2)),
        ("torchrun.sh", {"GPUS": "8"}, (1, 8)),
        ("torchrun.sh", {"NODES": "4", "FIRST_NODE": "node01", "GPUS": "8"}, (4, 8)),
    ],
)
def test_the_command_is_one_of_ours(
    script: str, environment: dict[str, str], shape: tuple[int, int], tmp_path: Path
) -> None:
    launcher, words = launched(tmp_path, script, environment, "run_dir=elsewhere", "data.batch_size=128")
    arguments, rest = build_parser().parse_known_args(words)
    recipe = load_recipe(arguments.recipe, [*arguments.overrides, *rest], "pretrain")
    assert (recipe.run_dir, recipe.data.batch_size, arguments.resume) == ("elsewhere", 128, "auto")
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == shape
    nodes, devices = shape
    if script == "pretrain.sbatch":
        assert "--kill-on-bad-exit=1" in launcher
        check_launch(devices, nodes, {**BATCH, "SLURM_NTASKS": str(nodes * devices), "SLURM_JOB_NAME": "ssamba"})
    else:
        assert {f"--nnodes={nodes}", f"--nproc-per-node={devices}"} <= set(launcher)
        assert ("--standalone" in launcher) == (nodes == 1)
        assert ("--rdzv-endpoint=node01:29500" in launcher) == (nodes > 1)


def test_what_slurm_is_asked_for() -> None:
    text = (SLURM / "pretrain.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert asked["signal"] == "USR1@120" and asked["requeue"] == "" and asked["job-name"] not in ("bash", "interactive")
    # A task for each GPU.
    assert asked["gres"] == f"gpu:{asked['ntasks-per-node']}" and "ntasks" not in asked
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK"):
        assert name.removeprefix("SLURM_").lower().replace("_", "-") in asked  # Slurm sets no other


@pytest.mark.parametrize("script", ["pretrain.sbatch", "torchrun.sh"])
def test_without_a_recipe_it_says_so(script: str) -> None:
    done = subprocess.run(["bash", str(SLURM / script)], capture_output=True, text=True)
    assert done.returncode and "which recipe?" in done.stderr


def test_a_sweep_is_arrays_one_after_another(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs"
    (run_dir / "recipes").mkdir(parents=True)
    for stage, points in (("pretrain", 3), ("finetune", 6)):
        (run_dir / "recipes" / f"{stage}.txt").write_text("".join(f"{stage}-{i}.yaml\n" for i in range(points)))
    log = tmp_path / "said"
    # Each call is kept, and sbatch answers with the number of its job.
    for name, answer in (("ssamba", ""), ("sbatch", f"wc -l < {log}")):
        words = f"import json, sys; print(json.dumps(['{name}', *sys.argv[1:]]))"
        (tmp_path / name).write_text(f'#!/bin/sh\n{sys.executable} -c "{words}" "$@" >> {log}\n{answer}\n')
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(SLURM / "sweep.sh"), "sweep.yaml", str(run_dir), "--gres=gpu:1"]
    subprocess.run(command, env=path, check=True, capture_output=True)
    prepare, *arrays, compare = map(json.loads, log.read_text().splitlines())
    assert prepare == ["ssamba", "sweep", "sweep.yaml", "--prepare", "--resume", "auto"]
    assert ["--array=0-2" in arrays[0], "--array=0-5" in arrays[1]] == [True, True]
    assert all({"--gres=gpu:1", "--signal=USR1@120", "--requeue"} <= {*array} for array in arrays)
    assert "--dependency=afterany:2" in arrays[1] and "--dependency=afterany:3" in compare
    assert compare[-1] == "ssamba sweep 'sweep.yaml' --resume auto"
    # The last point of the second array, as a node would run it.
    job = arrays[1][-1].removeprefix("srun ")
    subprocess.run(["bash", "-c", job], env=path | {"SLURM_ARRAY_TASK_ID": "5"}, check=True)
    assert json.loads(log.read_text().splitlines()[-1]) == ["ssamba", "finetune", "finetune-5.yaml", "--resume", "auto"]
