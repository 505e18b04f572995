"""The selective scan on this machine's CPU beside two other ways to compute it, and what was asked of it.

    python benchmarks/scan.py [--batch 2] [--tokens 512] [--width 384] [--states 16] [--rounds 10] [--loop-rounds 2]

All run in one process and in turn; ratios are medians over the rounds. Beside our backends cpu and torch-chunked:

loop   what SSAMBA's authors run where there is no GPU: a loop over the tokens, differentiated by autograd. Every slice
       of a token has a gradient as large as the whole sequence, so its backward pass takes O(L^2) time.
pscan  the parallel scan of mambapy, with a backward pass of its own.

Both keep tensors of B * L * E * N numbers. Inputs are random, one direction, with D, gate and bias of the step sizes.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mambapy.pscan import pscan
from torch import Tensor

from ssamba.evaluation.efficiency import (
    Goal,
    ScanShape,
    exact,
    goals_table,
    interleaved_times,
    median_ratio,
    peak_memory,
    relative_errors,
    scan_inputs,
    scan_operator,
    value_and_gradients,
    versions,
    worst_gradient,
)
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.training.runs import hardware

RESULTS = Path(__file__).parent / "results"
OURS = ("cpu", "torch-chunked")


def loop_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """A scan as the original computes it, in its layout: u, delta, z (B, E, L), B, C (B, N, L) -> (B, E, L)."""
    delta = F.softplus(delta + delta_bias.unsqueeze(-1))
    decay = torch.exp(torch.einsum("bel,en->beln", delta, A))
    drive = torch.einsum("bel,bnl,bel->beln", delta, B, u)
    state = u.new_zeros(len(u), *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("ben,bn->be", state, C[:, :, t]))
    return (torch.stack(outputs, 2) + u * D.unsqueeze(-1)) * F.silu(z)


def parallel_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """A scan by mambapy, in its layout, which is ours: u, delta, z (B, L, E), B, C (B, L, N) -> (B, L, E)."""
    delta = F.softplus(delta + delta_bias).unsqueeze(-1)
    states = pscan(torch.exp(delta * A), delta * B.unsqueeze(2) * u.unsqueeze(-1))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def other_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Channels before tokens from tokens before channels, and back: contiguous copies of what has three dimensions."""
    return {name: x.transpose(1, 2).contiguous() if x.ndim == 3 else x for name, x in tensors.items()}


class Contender(NamedTuple):
    scan: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    dout: Tensor

    def forward(self) -> Tensor:
        return self.scan(**self.inputs)

    def step(self) -> dict[str, Tensor]:
        """Forward and backward."""
        return value_and_gradients(self.scan, self.inputs, self.dout)

    def backward_memory(self) -> int | None:
        """Bytes that a backward pass takes at its peak: gradients and everything temporary, beyond inputs, output and
        what the forward pass keeps."""
        leaves = {name: x.detach().requires_grad_() for name, x in self.inputs.items()}
        y = self.scan(**leaves)
        return peak_memory(functools.partial(torch.autograd.grad, y, list(leaves.values()), self.dout))


def contenders(shape: ScanShape) -> dict[str, Contender]:
    inputs = scan_inputs(shape)
    dout = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    turned = other_layout({**inputs, "dout": dout})
    found = {"loop": Contender(loop_scan, turned, turned.pop("dout")), "pscan": Contender(parallel_scan, inputs, dout)}
    return found | {name: Contender(scan_operator(inputs, name), inputs, dout) for name in OURS}


def errors_of(all_of_them: Mapping[str, Contender]) -> dict[str, dict[str, float]]:
    """Of y and every gradient, against float64."""
    wanted = exact(all_of_them["cpu"].inputs, all_of_them["cpu"].dout)
    found = {name: contender.step() for name, contender in all_of_them.items()}
    found["loop"] = other_layout(found["loop"])
    return {name: relative_errors(values, wanted) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (("batch", 2), ("tokens", 512), ("width", 384), ("states", 16), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--loop-rounds", type=int, default=2, help="of the loop's backward pass")
    parser.add_argument("--out", type=Path, default=RESULTS / "scan.json")
    given = parser.parse_args()
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}")
    shape = ScanShape(1, given.batch, given.tokens, given.width, given.states)
    if min(*shape, given.rounds, given.loop_rounds) < 1:
        parser.error(f"{shape}, {given.rounds} and {given.loop_rounds} rounds; expected at least 1 of each")
    each = contenders(shape)
    errors = errors_of(each)
    forward = interleaved_times({name: one.forward for name, one in each.items()}, given.rounds, "forward")
    quick = {name: one.step for name, one in each.items() if name != "loop"}
    step = interleaved_times(quick, given.rounds, "forward + backward")
    slow = interleaved_times({name: each[name].step for name in ("loop", "cpu")}, given.loop_rounds, "loop's backward")
    memory = {name: one.backward_memory() for name, one in each.items()}

    size_of_u = 4 * given.batch * given.tokens * given.width
    details: dict[str, dict[str, Any]] = {}
    for name in each:
        took = slow[name] if name == "loop" else step[name]
        taken = memory[name]
        details[name] = {
            "forward_ns": 1e9 * statistics.median(forward[name]) / shape.elements,
            "forward_backward_ns": 1e9 * statistics.median(took) / shape.elements,
            "backward_memory_of_u": None if taken is None else taken / size_of_u,
            "errors": errors[name],
            "seconds": {"forward": forward[name], "forward_backward": took},
        }
    ours = details["cpu"]
    goals = [
        Goal("forward, loop / cpu", ">=", 30, median_ratio(forward["loop"], forward["cpu"])),
        Goal("forward, pscan / cpu", ">=", 20, median_ratio(forward["pscan"], forward["cpu"])),
        Goal("forward + backward, loop / cpu", ">=", 100, median_ratio(slow["loop"], slow["cpu"])),
        Goal("forward + backward, pscan / cpu", ">=", 15, median_ratio(step["pscan"], step["cpu"])),
        Goal("forward, ns an element", "<=", 0.5, ours["forward_ns"]),
        Goal("forward + backward, ns an element", "<=", 1.5, ours["forward_backward_ns"]),
        Goal("error of y, of its scale", "<=", 5e-7, errors["cpu"]["y"]),
        Goal("largest error of a gradient, of its scale", "<=", 2e-6, worst_gradient(errors["cpu"])[1]),
    ]
    if ours["backward_memory_of_u"] is not None:
        goals.append(Goal("memory of a backward pass, sizes of u", "<=", 4, ours["backward_memory_of_u"]))

    rows = [("", "forward", "forward + backward", "memory", "error of y", "error of gradients")]
    for name, one in details.items():
        worst_name, worst = worst_gradient(one["errors"])
        of_u = one["backward_memory_of_u"]
        rows.append(
            (
                name,
                f"{one['forward_ns']:.3f}",
                f"{one['forward_backward_ns']:.3f}",
                "unknown" if of_u is None else f"{of_u:.1f}",
                f"{one['errors']['y']:.1e}",
                f"{worst:.1e} ({worst_name})",
            )
        )
    print(
        f"{shape}, float32: ns an element of {shape.elements:,}; memory that a backward pass takes, in sizes of u, "
        f"gradients included\n\n{markdown_table(rows)}\n\n{goals_table(goals)}"
    )
    result = {
        "shape": shape._asdict(),
        "rounds": given.rounds,
        "loop_rounds": given.loop_rounds,
        "goals": [goal._asdict() for goal in goals],
        "contenders": details,
        "hardware": hardware(),
        "versions": versions("mambapy"),
    }
    write_json(given.out, result)


if __name__ == "__main__":
    main()
