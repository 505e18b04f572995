"""Many devices: processes on the CPU, over loopback, that must learn what one process learns."""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from forked import Forked
from safetensors.torch import load_file

from ssamba.build.runs import build_finetuner, build_pretrainer
from ssamba.cli import main
from ssamba.config import ENCODERS, FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.data import pipeline
from ssamba.errors import UserError
from ssamba.launch import check_launch, rank
from ssamba.models.checkpoint import save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings

SECONDS = 150  # of a launch; more is a hang
STEPS = 10  # more than an epoch
# Runs several commands in the processes that are there, one after another; pictures are empty files.
COMMANDS = """
import json, sys
from ssamba.cli import main
from ssamba.evaluation import pictures
from ssamba.training.distributed import end_rank
pictures.save_figure = lambda figure, path: (path.parent.mkdir(exist_ok=True), path.touch())
status = next((status for words in json.loads(sys.argv[1]) if (status := main(words))), 0)
end_rank(status)
sys.exit(status)
"""
SCRIPT = f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\nimport shallow\n{COMMANDS}"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
Runs = Callable[[str], Path]


def launch(launcher: Sequence[str], folder: Path, commands: Sequence[Sequence[str]]) -> tuple[int, str]:
    """Exit status, and all that was said; what takes too long is ended and fails."""
    (folder / "script.py").write_text(SCRIPT)
    words = [*launcher, str(folder / "script.py"), json.dumps(commands)]
    process = subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its own, in at most half a minute
            process.communicate(timeout=60)
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def slurm_tasks(tasks: int, folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Processes with what srun tells those of a job on one node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                Forked(
                    [json.dumps(commands)],
                    folder / f"rank-{rank}",
                    COMMANDS,
                    {**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                )
            )
            for rank in range(tasks)
        ]
        for one in ranks:
            assert one.wait(SECONDS) == 0, one.err.read_text()


def words_for(recipes: dict[str, Path], kind: str, run: Path, *words: str) -> list[str]:
    test = load_recipe(recipes["finetune"], ["run_dir=unused"]).data.test
    common = [
        "audio.mean=-4",
        "audio.std=4",
        f"trainer.max_steps={STEPS}",
        f"trainer.validate_every_steps={STEPS // 2}",
        "optimizer.learning_rate=1e-4",
        "model.drop_path=0.3",
        "optimizer.ema_decay=0.5",
    ]
    if kind == "visible":
        common += ["model.encode=visible", "mask.share=0.75"]
    if kind == "batch":
        common += ["task.head_norm=batch"]
    elif kind == "finetune":  # the encoder is still frozen half way
        common += ["optimizer.layer_decay=0.7", "data.balance=true", f"task.freeze_steps={STEPS // 2 + 1}"]
        common += [f"model.pretrained={teacher_beside(recipes['finetune'])}"]
    else:
        common += [f"evaluation.probe={test[0]}", "evaluation.label=sound", "mask.per_clip=2"]
        common += [f"objective.parts.{part}=1" for part in ("contrastive", "reconstruction", "latent", "clip")]
    if kind == "pretrain":
        common += ["objective.parts.distillation=1"]
        common += [f"objective.distillation.teacher={teacher_beside(recipes['pretrain'])}"]
    command = "finetune" if kind in ("finetune", "batch") else "pretrain"
    return [command, str(recipes[command]), f"run_dir={run}", *common, "data.batch_size=8", *words]


def teacher_beside(recipe: Path) -> Path:
    """The folder of a model that others learn from or begin with, with weights at random."""
    folder = recipe.with_name("teacher")
    if not folder.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = AudioEncoder("ssast", SIZES["ssast"]["nano"], 128, 64, 16, 16, 16, 16)
        save_model(folder, MaskedPatchModel(encoder), AudioSettings(16000, -4.0, 4.0, "keep"))
    return folder


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    # What is measured by the clock, and what is of the clips of one rank.
    others = ("samples_per_second", "seconds", "_spread")
    return [{name: value for name, value in row.items() if not name.endswith(others)} for row in rows]


def checkpoint(run: Path) -> dict[str, Any]:
    held = [torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.ckpt")]
    return max((state for state in held if "optimizer_states" in state), key=lambda state: state["global_step"])


@pytest.fixture(scope="module")
def alone(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """pretrain, visible (pretraining of which the encoder gets the visible patches alone), finetune, batch (fine-tuning
    with a head that standardises by the batch) -> the run of one process with the whole batch."""
    runs: dict[str, Path] = {}
    encoder = {"pretrain": "ssamba", "visible": "ssast", "finetune": "ssast", "batch": "ssast"}

    def run(kind: str) -> Path:
        if kind not in runs:
            folder = tmp_path_factory.mktemp("alone") / kind
            assert main(words_for(recipes, kind, folder, f"model.encoder={encoder[kind]}")) == 0
            runs[kind] = folder
        return runs[kind]

    return run


def half_way(run: Path, copy: Path) -> Path:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob(f"step-{STEPS:07d}.*"):
        path.unlink()
    return copy


@pytest.fixture(scope="module")
def together(recipes: dict[str, Path], alone: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A name -> the run of several processes. All runs of as many processes are made by one launch, as by Slurm."""
    folder = tmp_path_factory.mktemp("together")
    runs = {
        2: {
            "pretrain ddp": ["model.encoder=ssamba"],
            "pretrain fsdp": ["model.encoder=ssamba", "trainer.strategy=fsdp"],
            "visible ddp": ["model.encoder=ssast"],
            "visible fsdp": ["model.encoder=ssast", "trainer.strategy=fsdp"],
            "batch ddp": ["model.encoder=ssast"],
            "batch fsdp": ["model.encoder=ssast", "trainer.strategy=fsdp"],
            # Goes on with what one process has begun.
            "finetune fsdp": ["model.encoder=ssast", "trainer.strategy=fsdp", "trainer.accumulate=2", "--resume=auto"],
        },
        4: {"finetune 4": ["model.encoder=ssast"]},
    }
    launched: set[int] = set()

    def run(name: str) -> Path:
        (ranks,) = [ranks for ranks, held in runs.items() if name in held]
        if ranks not in launched:
            if ranks == 2:
                half_way(alone("finetune"), folder / "finetune fsdp")
            commands = [
                words_for(recipes, name.split()[0], folder / name, f"trainer.devices={ranks}", *words)
                for name, words in runs[ranks].items()
            ]
            slurm_tasks(ranks, folder / f"of {ranks}", commands)
            launched.add(ranks)
        return folder / name

    return run


# The same numbers


UNSEEN = {
    # It shifts all predictions of a clip alike, which no contrast sees.
    "pretrain": {"contrastive_head.2.bias"},
    "visible": {"contrastive_head.2.bias"},
    # It shifts all clips alike, which a mean over them takes away, and that mean is then another.
    "batch": {"encoder.stack.norm.bias", "head.0.mean"},
}
"""Of each kind of run, tensors whose gradients are rounding errors: Adam's steps are as long for them as for any."""


def assert_same(ours: Path, theirs: Path) -> None:
    trained, wanted = (load_file(run / "model" / "model.safetensors") for run in (ours, theirs))
    assert trained.keys() == wanted.keys()
    for name in wanted.keys() - UNSEEN.get(theirs.name, set()):
        torch.testing.assert_close(trained[name], wanted[name], atol=1e-5, rtol=0, msg=name)
    logged = [metrics(run) for run in (ours, theirs)]
    assert len(logged[0]) == len(logged[1]) == STEPS + 2
    for row, other in zip(*logged, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "pretrain ddp",
        "pretrain fsdp",
        "visible ddp",
        "visible fsdp",
        "batch ddp",
        "batch fsdp",
        "finetune fsdp",
        "finetune 4",
    ],
)
def test_ranks_learn_what_one_process_learns(name: str, together: Runs, alone: Runs) -> None:
    assert_same(together(name), alone(name.split()[0]))


def test_accumulated_batches_are_one_batch(recipes: dict[str, Path], alone: Runs, tmp_path: Path) -> None:
    words = ["model.encoder=ssast", "trainer.accumulate=4"]
    assert main(words_for(recipes, "finetune", tmp_path / "run", *words)) == 0
    assert_same(tmp_path / "run", alone("finetune"))


def test_one_process_goes_on_with_what_sharded_ranks_have_begun(
    recipes: dict[str, Path], together: Runs, alone: Runs, tmp_path: Path
) -> None:
    run = half_way(together("pretrain fsdp"), tmp_path / "run")
    assert main([*words_for(recipes, "pretrain", run, "model.encoder=ssamba"), "--resume=auto"]) == 0
    assert_same(run, alone("pretrain"))
    (resumed,) = json.loads((run / "run.json").read_text())["resumed"]
    assert resumed["step"] == STEPS // 2


def test_scores_of_unequal_shares_are_those_of_one_process(together: Runs, alone: Runs) -> None:
    """12 clips for 4 ranks of 2 clips each: ranks have 1 or 2 at a time."""
    ours, theirs = (
        [
            {name: value for name, value in row.items() if "accuracy" in name}
            for row in metrics(run)
            if "val/loss" in row
        ]
        for run in (together("finetune 4"), alone("finetune"))
    )
    assert ours == theirs and len(ours) == 2


@pytest.mark.parametrize("name", ["pretrain ddp", "pretrain fsdp"])
def test_one_rank_writes_what_one_process_writes(name: str, together: Runs, alone: Runs) -> None:
    ours, theirs = together(name), alone("pretrain")
    files, wanted = ({path.relative_to(run) for path in run.rglob("*") if path.is_file()} for run in (ours, theirs))
    assert files == wanted
    records = [json.loads((run / "run.json").read_text()) for run in (ours, theirs)]
    assert records[0].keys() == records[1].keys() and records[0]["steps"] == STEPS
    assert records[0]["data"] == records[1]["data"] and records[0]["parameters"] == records[1]["parameters"]


def test_a_sharded_checkpoint_is_as_all_others(together: Runs) -> None:
    ours, theirs = (checkpoint(together(f"pretrain {name}")) for name in ("fsdp", "ddp"))
    assert ours.keys() == theirs.keys() and ours["state_dict"].keys() == theirs["state_dict"].keys()
    (state,), (wanted,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert state["param_groups"] == wanted["param_groups"] and state["state"].keys() == wanted["state"].keys()
    for name, tensor in theirs["average"].items():
        if name == "model.contrastive_head.2.bias":  # see assert_same
            continue
        torch.testing.assert_close(ours["average"][name], tensor, atol=1e-5, rtol=0)
    for number, held in wanted["state"].items():
        assert float(state["state"][number]["step"]) == STEPS
        for moment in ("exp_avg", "exp_avg_sq"):
            assert type(state["state"][number][moment]) is torch.Tensor
            torch.testing.assert_close(state["state"][number][moment], held[moment], atol=1e-5, rtol=1e-3)


# What waits for a gradient


def _without_gradient(module: Any, loss: torch.Tensor) -> list[str]:
    loss.backward()
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def _built(recipes: dict[str, Path], kind: str, *words: str) -> Any:
    recipe = load_recipe(recipes[kind], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    return (build_pretrainer(recipe) if isinstance(recipe, PretrainRecipe) else build_finetuner(recipe)).module


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_trained_parameter_gets_a_gradient(encoder: str, recipes: dict[str, Path]) -> None:
    """DDP waits for each; looking for those that get none would cost a walk through the graph at every step."""
    log_mel = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    for dropped in ("none", "reconstruction", "contrastive"):
        parts = [] if dropped == "none" else [f"objective.parts.{dropped}=0"]
        module = _built(recipes, "pretrain", f"model.encoder={encoder}", *parts)
        values = module.objectives(log_mel, module.draw_mask("train", [0, 1]))
        assert not _without_gradient(module, values["loss"])
    for words in (
        ["task.pooling=mean"],
        ["task.pooling=class", "task.head_norm=none"],
        ["task.freeze_encoder=true"],
        ["task.head_norm=batch"],
    ):
        module = _built(recipes, "finetune", f"model.encoder={encoder}", *words)
        loss = module.loss(module.model(log_mel), module.targets(torch.tensor([0, 1])))
        assert not _without_gradient(module, loss)


# The batch


def test_each_device_takes_its_part_of_a_batch(recipes: dict[str, Path]) -> None:
    words = ["run_dir=unused", "audio.mean=-4", "audio.std=4", "data.batch_size=24", "trainer.devices=2"]
    recipe = load_recipe(recipes["finetune"], [*words, "trainer.num_nodes=3", "trainer.accumulate=2"])
    assert isinstance(recipe, FinetuneRecipe)
    assert build_finetuner(recipe).data.settings.batch_size == 2


@pytest.mark.parametrize(
    ("batch", "words", "nearest"),
    [
        (12, ["trainer.devices=8"], "8 or 16"),
        (4, ["trainer.devices=3", "trainer.num_nodes=2"], "6"),
        (64, ["trainer.accumulate=3"], "63 or 66"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_told(
    batch: int, words: list[str], nearest: str, recipes: dict[str, Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused("pretrain", recipes["pretrain"], f"run_dir={tmp_path / 'run'}", f"data.batch_size={batch}", *words)
    assert f"data.batch_size is {batch}, the clips of a step over all devices" in said
    assert said.endswith(f"the nearest that would do: {nearest}\n")


def test_fsdp_and_loss_scaling_are_told(recipes: dict[str, Path], refused: Callable[..., str], tmp_path: Path) -> None:
    words = [f"run_dir={tmp_path / 'run'}", "trainer.strategy=fsdp", "trainer.precision=16-mixed"]
    assert "expected 32 or bf16-mixed" in refused("pretrain", recipes["pretrain"], *words)


# Launchers

ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "6"}


@pytest.mark.parametrize("environment", [ELASTIC, SLURM, {**SLURM, **ELASTIC}])
def test_as_many_processes_as_the_recipe_says(environment: dict[str, str]) -> None:
    check_launch(4, 2, environment)
    for devices, nodes in ((4, 1), (8, 1), (2, 4), (1, 1)):
        with pytest.raises(UserError, match="4 processes on each of 2 nodes.*trainer.devices=4 trainer.num_nodes=2"):
            check_launch(devices, nodes, environment)


def test_other_launches() -> None:
    check_launch(8, 1, {})
    check_launch(8, 1, {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"})
    with pytest.raises(UserError, match="num_nodes is 2, but neither srun nor torchrun"):
        check_launch(8, 2, {})
    with pytest.raises(UserError, match="--ntasks-per-node"):
        check_launch(4, 1, {"SLURM_NTASKS": "4", "SLURM_NNODES": "1"})
    with pytest.raises(UserError, match="Slurm has 1 processes on each of 1 nodes"):
        check_launch(4, 1, {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"})


def test_the_rank_is_the_launchers() -> None:
    assert [rank(held) for held in ({}, SLURM, ELASTIC, {**SLURM, **ELASTIC})] == [0, 6, 5, 5]
    assert rank({"LOCAL_RANK": "3"}) == 3


# Mistakes


def test_torchruns_ranks_learn_the_same_and_say_a_mistake_once(
    recipes: dict[str, Path], alone: Runs, tmp_path: Path
) -> None:
    """A run, and then, before a fit, another one into a folder that exists."""
    run = alone("finetune")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    commands = [
        words_for(recipes, "finetune", folder, "model.encoder=ssast", "trainer.devices=2")
        for folder in (tmp_path / "run", run)
    ]
    status, said = launch(TORCHRUN, tmp_path, commands)
    assert status and said.count("ssamba: ") == 1 and f"ssamba: run folder {run} exists" in said, said
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    assert_same(tmp_path / "run", run)


def test_what_is_not_finite_stops_all_ranks_and_one_says_so(recipes: dict[str, Path], tmp_path: Path) -> None:
    """Started by Lightning, in the fit."""
    words = ["optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6", "optimizer.warmup_steps=0"]
    words += ["model.encoder=ssast", "trainer.devices=2"]
    command = words_for(recipes, "pretrain", tmp_path / "run", *words)
    status, said = launch([sys.executable], tmp_path, [command])
    (message,) = [line for line in said.splitlines() if line.startswith("ssamba: ")]
    assert status == 2 and "Traceback" not in said
    assert message.startswith("ssamba: step 1: the loss is not finite (loss nan")
    # The samples are those of both ranks, 4 packed clips each.
    assert len(message.split("samples: ")[1].split(". ")[0].split(", ")) == 8
    assert not (tmp_path / "run" / "model").exists()


def test_a_rank_ends_without_the_interpreters_end(tmp_path: Path) -> None:
    """In which a thread of gloo's would abort it; but not without what is registered for the end."""
    code = f"""
import atexit, torch
from ssamba.training.distributed import end_rank, part_at_exit
class Held:
    def __del__(self):
        print("let go of")
held = Held()
atexit.register(lambda: print("apart" if not torch.distributed.is_initialized() else "together"))
part_at_exit()
end_rank(4)
torch.distributed.init_process_group("gloo", "file://{tmp_path}/ranks", rank=0, world_size=1)
end_rank(3)
"""
    with Forked([], tmp_path / "process", code) as process:
        assert (process.wait(SECONDS), process.out.read_text()) == (3, "apart\n"), process.err.read_text()


def test_ranks_with_unequal_shards_without_an_index_end_together(
    corpus: Path, recipes: dict[str, Path], tmp_path: Path
) -> None:
    """Two ranks, three shards of which one is as large as the others together; then one rank goes on."""
    folder = tmp_path / "shards"
    folder.mkdir()
    shards = [corpus / "train" / f"00000{number}.tar" for number in range(4)]
    with wds.TarWriter(str(folder / "large.tar")) as writer:
        for sample in wds.tarfile_samples({"url": str(path)} for path in shards[:2]):
            writer.write({key: value for key, value in sample.items() if key != "__url__"})
    for path in shards[2:]:
        shutil.copy(path, folder)
    run = tmp_path / "run"
    words = words_for(
        recipes,
        "pretrain",
        run,
        f"data.train={folder}",
        "data.order=streaming",
        "data.short=pad",
        "model.encoder=ssast",
        "evaluation.probe=null",
        "data.validation=null",
        "data.shuffle_buffer=2",
    )
    slurm_tasks(2, tmp_path, [[*words, "trainer.devices=2"]])
    state = checkpoint(run)["ClipDataModule"]
    assert main([*words, f"trainer.max_steps={STEPS + 3}", "--resume", str(run)]) == 0
    sizes: dict[int, int] = {}
    for batch in pipeline(
        str(folder), seconds=0.1, batch_size=1, shuffle_buffer=1, order="streaming", sampling_rate=16000
    ):
        sizes |= {turn: samples for turn, samples in batch["ended"]}
        if len(sizes) == 9:
            break
    assert sorted(sizes[turn] for turn in range(3)) == [12, 12, 24]
    for one, clips in ((state, 8 * STEPS), (checkpoint(run)["ClipDataModule"], 8 * (STEPS + 3))):
        behind = [*range(one["shards"]["first"]), *one["shards"]["done"]]
        # Each clip was another recording, of 48 in an epoch.
        assert one["clips"] == clips == sum(map(len, one["shards"]["taken"].values())) + sum(map(sizes.get, behind))
        assert len(behind) >= 3
