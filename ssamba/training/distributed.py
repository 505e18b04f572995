"""Several devices: how a model is spread over them, and what its ranks exchange."""

import atexit
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

_T = TypeVar("_T")


def gathered(value: _T) -> list[_T]:
    """The value of every rank, in their order, on all of them; it may be of another size on each."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def make_strategy(name: str, ranks: int) -> Strategy | str:
    """What `trainer.strategy` names ("auto", "ddp", "fsdp"), for so many ranks."""
    if name == "fsdp":
        return ShardedStrategy(ranks)
    if name == "ddp" or ranks > 1:
        # Buffers of ours are the same on all ranks, so none is sent round; gradients stay in the buckets that are.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return "auto"


def shard(model: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Leave each rank its part of every tensor; a layer's tensors are whole on all ranks only while it runs."""
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # The rest is whole until the backward pass, unless there is none.
    trained = any(parameter.requires_grad for parameter in model.parameters())
    fully_shard(model, mesh=mesh, reshard_after_forward=None if trained else True)


@contextmanager
def parts_callable(model: nn.Module) -> Iterator[None]:
    """In here a part of a model can be called by itself: the tensors that `shard` leaves to the model as a whole, not
    to a layer, are whole. All ranks enter it together, after the model has run once."""
    if isinstance(model, FSDPModule):
        model.unshard()
    yield
    if isinstance(model, FSDPModule):
        model.reshard()


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with the checkpoints of the other strategies: whole tensors in one file.

    So a run goes on with another number of ranks, or with DDP, or from it.
    """

    lightning_restore_optimizer = True  # by load_optimizer_state_dict

    def __init__(self, ranks: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """torch's own form, parameters numbered in the order of the groups; of rank 0 alone, else empty."""
        assert self.model is not None
        state: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=_WHOLE)
        if not state:
            return {}
        names = [name for group in state["param_groups"] for name in group["params"]]
        return _renamed(state, {name: index for index, name in enumerate(names)})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        named = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = [named[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            by_name = _renamed(state, dict(enumerate(names)))
            # What was frozen so far has no moments: torch is to bear it, and then makes some up.
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_optimizer_state_dict(self.model, optimizer, by_name, options=options)
            for parameter in [parameter for group in optimizer.param_groups for parameter in group["params"]]:
                if named[id(parameter)] not in by_name["state"]:
                    optimizer.state.pop(parameter, None)


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names for its parameters."""
    return {
        "state": {names[old]: moments for old, moments in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[old] for old in group["params"]]} for group in state["param_groups"]
        ],
    }


def part_at_exit() -> None:
    """Have this process end its connection to the other ranks before it ends itself. For ranks that end in order alone:
    one that fails would wait for them."""
    atexit.register(_part)


def _part() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_rank(status: int) -> None:
    """End a process that was a rank, without Python's own end: a thread of gloo that then lets go of the last tensor
    that was sent needs the interpreter, and aborts the process, for which a launcher kills the other ranks. Returns
    where there were no other processes."""
    if torch.distributed.is_initialized():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
