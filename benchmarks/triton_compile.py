"""What Triton's kernels compile to on an NVIDIA GPU, counted without one.

    python benchmarks/triton_compile.py [--arch 90] [--states 16] [--out FILE]

Each kernel is compiled as for the two directions of a gated scan, for float32 and for bfloat16 tensors. Printed are
registers a thread, bytes spilled, bytes of shared memory, and how often the machine code of the kernel and of its
innermost loop (one state of one chunk of tokens) has an instruction. The innermost loop decides the time.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssamba.ops.conv import triton_kernels as conv
from ssamba.ops.scan import triton_kernels as scan

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
COUNTED = ("MUFU.EX2", "FFMA", "FMUL", "FADD", "FSEL", "SHFL", "LDG", "STG", "LDS", "STS", "LDL", "STL", "BAR")


def signature(kernel: Any, dtype: str, constants: dict[str, Any], out: str) -> tuple[dict[str, str], dict[Any, Any]]:
    """(types, attributes) of a kernel's arguments; tensors are aligned and their last strides 1, as in the models."""
    types: dict[str, str] = {}
    attributes: dict[Any, Any] = {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
            continue
        if name in POINTERS:
            types[name] = "*" + (out if name == "out" else POINTERS[name] or dtype)
        elif name.endswith("_e") or name in ("b_n", "c_n"):
            types[name], constants[name] = "constexpr", 1
            continue
        else:
            types[name] = "i32"
        if name in POINTERS or name.endswith(("_k", "_b", "_l")) or name in ("width", "between"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return types, attributes


# None stands for the dtype of the model's tensors.
POINTERS = {
    "u": None,
    "delta": None,
    "b": None,
    "c": None,
    "z": None,
    "dout": None,
    "du": None,
    "ddelta": None,
    "db": None,
    "dc": None,
    "out": None,
    "x": None,
    "dx": None,
    "a2": "fp32",
    "d": "fp32",
    "bias": "fp32",
    "weight": "fp32",
    "carried": "fp32",
    "saved": "fp32",
    "partial": "fp32",
    "sums": "fp32",
    "through": "fp32",
    "y": "fp32",
    "y_or_dz": "fp32",
    "bc": "i64",
}


def instructions(sass: str) -> list[tuple[int, str, str]]:
    """(address, mnemonic, operands) of every instruction."""
    found = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", sass)
    return [(int(address, 16), name, rest) for address, name, rest in (match.groups() for match in found)]


def innermost(sass: str) -> list[str]:
    """The mnemonics of the loop with the most exponentials an instruction: from a backward branch's target to it."""
    labels: dict[str, int] = {}
    address = 0
    for line in sass.splitlines():
        if match := re.match(r"\s*/\*([0-9a-f]{4,})\*/", line):
            address = int(match[1], 16) + 16
        elif match := re.match(r"\s*(\.L_x_\d+):", line):
            labels[match[1]] = address
    code = instructions(sass)
    loops = []
    for at, name, rest in code:
        target = re.search(r"`\((\.L_x_\d+)\)", rest)
        if name.startswith("BRA") and target and labels[target[1]] < at:
            loops.append([name for where, name, _ in code if labels[target[1]] <= where <= at])
    with_work = [loop for loop in loops if "MUFU.EX2" in loop]
    return min(with_work, key=len, default=[])


def count(names: list[str]) -> dict[str, int]:
    counts = Counter({wanted: sum(name.startswith(wanted) for name in names) for wanted in COUNTED})
    return {"all": sum(not name.startswith("NOP") for name in names)} | counts


def compiled(
    kernel: Any, dtype: str, constants: dict[str, Any], warps: int, arch: int, out: str, **options: Any
) -> dict[str, Any]:
    constants = dict(constants)
    types, attributes = signature(kernel, dtype, constants, out)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps} | options)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(binary.asm["ptx"])
        name = re.search(r"\.target\s+(\w+)", binary.asm["ptx"])
        assert name
        log = subprocess.run(
            [BIN / "ptxas", "-v", f"-arch={name[1]}", ptx, "-o", cubin], check=True, capture_output=True, text=True
        ).stderr
        cubin.write_bytes(binary.asm["cubin"])
        sass = subprocess.run([BIN / "nvdisasm", "-c", cubin], check=True, capture_output=True, text=True).stdout
    registers, spilled = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes spill stores", log)
    assert registers and spilled
    module = kernel.fn.__module__.split(".")[-1]
    return {
        "kernel": f"{module}.{kernel.__name__}",
        "dtype": dtype,
        "warps": warps,
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "shared": binary.metadata.shared,
        "kernel_counts": count([name for _, name, _ in instructions(sass)]),
        "loop_counts": count(innermost(sass)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for an H100 or H200")
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--out", type=Path, help="also write the counts as JSON")
    given = parser.parse_args()
    rows = triton.next_power_of_2(given.states)
    ungated = {"z": None, "z_b": 0, "z_l": 0, "z_e": 0}
    forward = {"STATES": given.states, "WARPS": scan._WARPS_FORWARD}
    backward = {"STATES": given.states, "WARPS": scan._WARPS_BACKWARD, "SINGLE": False}
    merge = {"BLOCK": 1024, "dout": None, "dout_b": 0, "dout_l": 0, "dout_e": 0}
    tile = {"WIDTH": 4, "TOKENS": conv.TOKENS, "CHANNELS": conv.CHANNELS, "weight_w": 1}
    segment = {"FIRST": 1, "DIRECTIONS": 2, "SEGMENT": conv.SEGMENT}
    # (kernel, dtype of `out`, constants, warps, options)
    kernels: list[tuple[Any, str | None, dict[str, Any], int, dict[str, Any]]] = [
        (scan._forward, "fp32", forward | ungated, scan._WARPS_FORWARD, {"maxnreg": scan._REGISTERS_FORWARD}),
        (scan._backward, None, backward, scan._WARPS_BACKWARD, {}),
        (scan._pack, None, {"STATES": given.states, "ROWS": rows}, 1, {}),
        (scan._unpack, None, {"STATES": given.states, "ROWS": rows, "BLOCKS": 12}, 1, {}),
        (scan._merge, None, merge, 4, {}),
        (conv._forward, None, tile, conv.WARPS_FORWARD, {}),
        (conv._backward, None, tile | segment, conv.WARPS_BACKWARD, {}),
    ]
    results = []
    for dtype in ("fp32", "bf16"):
        for kernel, out, constants, warps, options in kernels:
            found = compiled(kernel, dtype, constants, warps, given.arch, out or dtype, **options)
            results.append(found)
            print(
                f"{found['kernel']:28} {dtype}  warps {warps}  registers {found['registers']:3}  "
                f"spilled {found['spilled']}  shared {found['shared']}"
            )
            for part in ("kernel", "loop"):
                listed = "  ".join(f"{name} {times}" for name, times in found[f"{part}_counts"].items() if times)
                print(f"    {part:6}  {listed}" if listed else f"    {part:6}  none")
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
