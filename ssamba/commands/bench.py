"""`ssamba bench scan` and `ssamba bench efficiency`."""

import argparse
from typing import Any

from ssamba.config import MODEL_SIZES
from ssamba.errors import UserError
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, number, plain_text, whole_number

_MOST_VALUES = 2**31  # of a tensor whose speed is measured
TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 22000, 32768, 49152, 76800)
ROWS = 8  # of patches of a clip
KINDS = ("ssamba", "aum", "ssast", "ssast-plain", "conformer", "bilstm", "ssd")
PASSES = ("forward", "forward+backward")
SIZES = [size for size in MODEL_SIZES["ssamba"] if all(size in sizes for sizes in MODEL_SIZES.values())]

_EFFICIENCY = """
points:
  Each combination of --encoders, --sizes, --passes, --batch and --tokens is measured in a process of its own: the
  whole encoder on clips of 128 mel bins in patches of 16 x 16 (8 tokens a column), first the peak of its memory
  beyond weights and clips, then the time of --rounds calls. ssast-plain is SSAST with the original's attention, whose
  matrices of tokens x tokens are in memory. On a CPU a point is refused more memory than --most-gigabytes and counts
  as out of memory; after --most-seconds it is ended and counts as out of time. So do larger ones of the same kind,
  unmeasured.

files of --out:
  results.json, with every round, results.md (tables, growth exponents, where lines cross) and a picture for each size
  and batch. Points that are there already are kept, and measured again where the limits are now larger. Nothing else
  should be at work on the machine."""


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    bench = commands.add_parser("bench", help="Measure speed on this machine.")
    actions = bench.add_subparsers(required=True, metavar="scan|efficiency")
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
    _add_efficiency(actions)


def _add_efficiency(actions: Any) -> None:
    sub = actions.add_parser(
        "efficiency",
        help=bench_efficiency.__doc__,
        description=bench_efficiency.__doc__,
        epilog=_EFFICIENCY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument(sub, "--out", new_path, required=True, metavar="FOLDER", help="new, or one of this command's")
    some = f"default: {' '.join(map(str, TOKENS))}"
    add_argument(sub, "--tokens", whole_number, 8, 2**24, nargs="+", default=list(TOKENS), metavar="N", help=some)
    add_argument(sub, "--batch", whole_number, 1, 2**12, nargs="+", default=[1], metavar="N", help="default: 1")
    sub.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny"], help="default: tiny")
    sub.add_argument("--encoders", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    sub.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES), help="default: both")
    sub.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    add_argument(
        sub, "--threads", whole_number, 1, 1024, metavar="N", help="of the CPU; default: as many as torch takes"
    )
    add_argument(sub, "--rounds", whole_number, 1, 1000, default=5, metavar="N", help="default: %(default)s")
    most = "of a point, its start included; default: %(default)s"
    add_argument(sub, "--most-seconds", number, 1, 1e6, default=600.0, metavar="X", help=most)
    memory = "of a point on a CPU; default: what is available less 2 GiB"
    add_argument(sub, "--most-gigabytes", number, 1e-6, 1e6, metavar="X", help=memory)
    sub.add_argument("--overwrite", action="store_true", help="begin anew")
    sub.set_defaults(call=bench_efficiency)


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


def bench_efficiency(arguments: argparse.Namespace) -> int:
    """Measure time and peak memory of encoders against the tokens of their input."""
    out, gigabytes = arguments.out, arguments.most_gigabytes
    if odd := [tokens for tokens in arguments.tokens if tokens % ROWS]:
        raise UserError(f"--tokens is {odd[0]}; expected a multiple of {ROWS}, the rows of patches of 128 mel bins")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is no folder; expected a new one, or one of this command's")
    import torch

    from ssamba.evaluation.efficiency import versions
    from ssamba.evaluation.efficiency_points import Limits
    from ssamba.evaluation.efficiency_report import write_report
    from ssamba.evaluation.efficiency_runs import REPORT, EfficiencySettings, measure_points, open_record
    from ssamba.training.runs import RunLock, command_record, hardware

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    limits = Limits(arguments.most_seconds, None if gigabytes is None else round(gigabytes * 1e9))
    settings = EfficiencySettings(
        arguments.encoders,
        arguments.sizes,
        arguments.passes,
        arguments.batch,
        arguments.tokens,
        arguments.device,
        torch.get_num_threads(),
        arguments.rounds,
        limits,
    )
    with RunLock(out) as lock:
        out.mkdir(parents=True, exist_ok=True)
        lock.take()
        setup = {"device": arguments.device, **hardware(), "versions": versions()}
        record = measure_points(settings, out, open_record(out, setup, arguments.overwrite))
        write_report(out, record, command_record())
    failed = [one for one in record.points if one.status == "failed"]
    for one in failed:
        print(f"failed: {one.point}: {printable(one.because)}")
    print(f"written to {printable(str(out / REPORT))}")
    return 1 if failed else 0
