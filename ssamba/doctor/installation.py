"""What is installed, and on what."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ssamba.doctor.findings import LOCK, Finding, absent, ok, problem
from ssamba.errors import UserError
from ssamba.files import check_place
from ssamba.jobs import usable_cores
from ssamba.parts import OWN, Kind, find, load_main, names, parts
from ssamba.printable import masked

_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_NO_EXTRAS = ("triton", "causal-conv1d")  # what comes with others' packages
_DEVELOPERS = ("dev", "docs")  # extras of those who work on the package
_PAIR = ("torch", "torchaudio")
DRIVER = Path("/proc/driver/nvidia/version")
CGROUP = Path("/sys/fs/cgroup")
_LEAST_FREE = 10**8  # bytes
_SECONDS = 60  # that pip may take


def versions() -> Iterator[Finding]:
    """Python and packages, each of those that are needed."""
    yield ok("python", f"{platform.python_version()}, {platform.platform()}")
    yield ok("ssamba", metadata.version("ssamba"))
    extras: dict[str, str] = dict.fromkeys(_NO_EXTRAS, "")
    for requirement in map(Requirement, metadata.requires("ssamba") or ()):
        name, marker = requirement.name, requirement.marker
        matched = _EXTRA.search(str(marker or ""))
        if marker and not marker.evaluate({"extra": matched[1] if matched else ""}):
            yield absent(name, "not for this Python or platform")
        elif matched:
            if matched[1] not in _DEVELOPERS:
                extras.setdefault(name, matched[1])
        elif version := installed(name):
            yield ok(name, version)
        else:
            yield problem(name, "not installed", f"pip install {name}, or {LOCK}")
    for name, extra in sorted(extras.items()):
        if version := installed(name):
            yield ok(name, version)
        else:
            yield absent(name, "not installed", f"pip install 'ssamba[{extra}]'" if extra else "")
    yield from _agreement()


def installed(name: str) -> str | None:
    """The version of a package; None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _agreement() -> Iterator[Finding]:
    """Whether the versions go together."""
    pair = {name: installed(name) for name in _PAIR}
    if len({".".join(version.split(".")[:2]) for version in pair.values() if version}) > 1:
        releases = " and ".join(f"{name} {version}" for name, version in pair.items())
        yield problem("torch and torchaudio", f"{releases} are of two releases, and no pair", LOCK)
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    try:
        checked = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return
    if wrong := [line for line in checked.splitlines() if line.startswith("ssamba ")]:
        yield problem("what ssamba requires", "; ".join(wrong), LOCK)
    else:
        yield ok("what ssamba requires", "is here, by pip check")


def devices() -> Iterator[Finding]:
    """Processor, memory and GPUs, as far as this process may use them."""
    import torch

    from ssamba.training.runs import hardware

    machine = hardware()
    cores = usable_cores()
    yield ok("processor", f"{machine['processor']}, {platform.machine()}")
    yield ok("cores", f"{cores} of {os.cpu_count()} usable{_quota()}; torch takes {machine['threads']} threads")
    yield ok("memory", _memory())
    if not torch.cuda.is_available():
        if DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            yield problem(
                "GPU",
                f"NVIDIA's driver is here, but torch {torch.__version__}, built {built}, finds no GPU",
                "a driver that is new enough for it (nvidia-smi names the newest CUDA that it knows), or "
                f"{LOCK}; to do without, CUDA_VISIBLE_DEVICES=",
            )
        else:
            yield absent("GPU", "none: torch.cuda is not available")
    for index, name in enumerate(machine["gpus"]):
        free, total = torch.cuda.mem_get_info(index)
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        memory = f"{name}, {_size(free)} of {_size(total)} free, compute capability {capability}"
        yield ok(f"GPU {index}", f"{memory}, CUDA {torch.version.cuda}")


def _quota() -> str:
    """How much time of the cores a container may have, where it is less than all."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return "" if quota == "max" else f", for {int(quota) / int(period):g} cores' time"
    except (OSError, ValueError):
        return ""


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        text = f"{_size(page * os.sysconf('SC_AVPHYS_PAGES'))} of {_size(total)} unused"
    except (OSError, ValueError, AttributeError):
        return "not told by this system"
    try:
        limit = int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):
        return text
    return f"{text}, at most {_size(limit)} for this container" if limit < total else text


def added_parts() -> Iterator[Finding]:
    """What other packages add to this one, each part imported."""
    from ssamba.evaluation.task import find_task
    from ssamba.models.encoder import find_stack
    from ssamba.models.pools import find_pool

    readers: dict[Kind, Callable[[str], object]] = {
        "encoder": find_stack,
        "pool": find_pool,
        "task": find_task,
        "data set": load_main,
    }
    added = False
    for kind, read in readers.items():
        for name in names(kind):
            if all(part.package == OWN for part in parts(kind)[name]):
                continue
            added = True
            try:
                read(name)
            except UserError as error:
                yield problem(f"{kind} {name}", str(error), "pip install or uninstall the package that is named")
            else:
                part = find(kind, name)
                yield ok(f"{kind} {name}", f"{part.package} {part.version}")
    if not added:
        yield absent("parts", "no other package adds any")


def caches() -> Iterator[Finding]:
    """Folders in which something is kept for the next time."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from ssamba.data.shards.finding import default_cache
    from ssamba.ops.kernel_cache import kernel_folders

    folders = kernel_folders()
    findings = [_place("compiled kernels", folder, "NUMBA_CACHE_DIR names another folder") for folder in folders]
    # The first that can be written is taken.
    yield next((one for one in findings if one.state == "ok"), findings[-1])
    yield _place("shards from elsewhere", default_cache(), "data.cache or XDG_CACHE_HOME names another folder")
    yield _place("models of the Hub", Path(HF_HUB_CACHE), "HF_HOME names another folder")
    if installed("triton"):
        from triton.runtime.cache import knobs

        yield _place("Triton's kernels", Path(knobs.cache.dir), "TRITON_CACHE_DIR names another folder")


def _place(name: str, folder: Path, remedy: str) -> Finding:
    try:
        check_place(folder / "probe")
    except UserError as error:
        return problem(name, str(error).replace(str(folder / "probe"), str(folder)), remedy)
    parent = folder
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < _LEAST_FREE:
        return problem(name, f"{folder}: {_size(free)} free", f"make room; or {remedy}")
    return ok(name, f"{folder}{'' if parent == folder else ' (not made yet)'}, {_size(free)} free")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NODEID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_MEM_PER_NODE",
    "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "NUMBA_CACHE_DIR",
    "NUMBA_NUM_THREADS",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "XDG_CACHE_HOME",
    "TMPDIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "WANDB_MODE",
    "WANDB_DIR",
    "AWS_ENDPOINT_URL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def launch(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The launcher of this process, and the environment variables that name it or change what is done: those of a list,
    none with keys or tokens."""
    from ssamba.launch import launched, rank

    try:
        by, own = launched(environment), rank(environment)
    except UserError as error:
        yield problem("launcher", str(error), "start with srun or torchrun, as recipes/slurm/ does, or without either")
    else:
        if by is None:
            yield ok("launcher", "none: this process is by itself, or Lightning starts the others")
        else:
            each = f"{by.each} processes on each of {by.nodes} nodes"
            yield ok(
                "launcher",
                f"{by.name}, {each}; this is rank {own} (trainer.devices={by.each} trainer.num_nodes={by.nodes})",
            )
    for name in _VARIABLES:
        if name in environment:
            yield ok(name, masked(environment[name]) or "empty")
