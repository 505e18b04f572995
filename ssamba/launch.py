"""How this process was started: by torchrun, by Slurm's srun, or by itself. Known from the environment alone."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ssamba.errors import UserError


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number among those of its run, 0 where it is the only one."""
    # In Lightning's order: SLURM_PROCID is there as well when torchrun runs under Slurm.
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((_count(environment, name) for name in names if name in environment), 0)


def _count(environment: Mapping[str, str], name: str, least: int = 0) -> int:
    """A variable that a launcher sets; UserError if it is no number."""
    text = environment.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise UserError(f"{name} is {text!r} in the environment; expected the number that torchrun or srun sets there")
    return int(text)


@dataclass(frozen=True)
class Launched:
    """What started this process and the others of its run: `total` processes, `each` on each of `nodes` nodes."""

    name: str
    each: int
    nodes: int
    total: int
    how: str
    """The options by which it is told how many."""


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """torchrun or Slurm, if one of them started this process.

    Raises:
        UserError: its variables are no numbers, or do not say how many processes a node has.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        each, total = (_count(environment, name, 1) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return Launched("torchrun", each, total // each, total, "--nproc-per-node and --nnodes")
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        total = _count(environment, "SLURM_NTASKS", 1)
        nodes = _count(environment, "SLURM_NNODES", 1) if "SLURM_NNODES" in environment else 1
        if total > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
            raise UserError(f"Slurm has {total} tasks, and not how many a node: give --ntasks-per-node, not --ntasks")
        how = "--ntasks-per-node and --nodes, with srun before the command"
        return Launched("Slurm", total // nodes, nodes, total, how)
    return None


def check_launch(devices: int, num_nodes: int, environment: Mapping[str, str] = os.environ) -> None:
    """UserError unless there are as many processes as a recipe's trainer.devices and trainer.num_nodes say."""
    by = launched(environment)
    if by is None and num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes is {num_nodes}, but neither srun nor torchrun started this process, so there is no "
            "other node; recipes/slurm/ shows how they do"
        )
    if by is None:
        return  # Lightning starts the processes of the other devices
    if (by.each, by.total) != (devices, devices * num_nodes):
        raise UserError(
            f"{by.name} has {by.each} processes on each of {by.nodes} nodes, one a device; the recipe has "
            f"trainer.devices={devices} trainer.num_nodes={num_nodes}. Give trainer.devices={by.each} "
            f"trainer.num_nodes={by.nodes}, or other processes: {by.how}"
        )
