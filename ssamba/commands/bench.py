"""`ssamba bench scan`."""

import argparse
from typing import Any

from ssamba.errors import UserError
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, plain_text, whole_number

_MOST_VALUES = 2**31  # of a tensor whose speed is measured


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    bench = commands.add_parser("bench", help="Measure speed on this machine.")
    actions = bench.add_subparsers(required=True, metavar="scan")
    sub = actions.add_parser("scan", help=bench_scan.__doc__, description=bench_scan.__doc__)
    sub.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    for name, size in (("batch", 2), ("tokens", 512), ("width", 384), ("states", 16), ("rounds", 10)):
        add_argument(sub, f"--{name}", whole_number, 1, 2**20, default=size, metavar="N", help="default: %(default)s")
    types = ("float32", "bfloat16", "float16")
    sub.add_argument("--dtype", default="float32", choices=types, help="default: %(default)s")
    add_argument(sub, "--backends", plain_text, nargs="+", metavar="BACKEND", help="default: all that run here")
    add_argument(
        sub, "--threads", whole_number, 1, 1024, metavar="N", help="of the CPU; default: as many as torch takes"
    )
    sub.add_argument("--bidirectional", action="store_true", help="both directions in one operator")
    add_argument(sub, "--out", new_path, metavar="FILE.json", help="also write everything as JSON")
    sub.set_defaults(call=bench_scan)


def bench_scan(arguments: argparse.Namespace) -> None:
    """Measure speed and error of the selective scan's backends beside the machine's peaks."""
    out = arguments.out
    if out and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    values = arguments.batch * arguments.tokens * max(arguments.width, arguments.states)
    if values > _MOST_VALUES:
        raise UserError(
            f"--batch * --tokens * --width or --states is {values}; expected at most {_MOST_VALUES} values of a tensor"
        )
    import torch

    from ssamba.evaluation.efficiency import SCAN_BACKENDS, ScanShape, benchmark_scan, scan_report, versions
    from ssamba.files import write_json
    from ssamba.training.runs import hardware

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = ScanShape(1 + arguments.bidirectional, arguments.batch, arguments.tokens, arguments.width, arguments.states)
    backends = arguments.backends or SCAN_BACKENDS
    result = benchmark_scan(shape, getattr(torch, arguments.dtype), arguments.device, backends, arguments.rounds)
    machine = hardware()
    print(f"{machine['processor']}, threads {machine['threads']}{''.join(f', {gpu}' for gpu in machine['gpus'])}")
    print(scan_report(result))
    if out:
        write_json(out, {**result, "hardware": machine, "versions": versions()})
        print(f"written to {printable(str(out))}")
