"""All checks, one after another, and their findings as text and as JSON."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ssamba.doctor import backends, formats, installation, selfcheck
from ssamba.doctor.findings import LOCK, Finding, cause_of, problem
from ssamba.printable import printable
from ssamba.progress import progress_bar

Check = Callable[[], Iterator[Finding]]
Findings = dict[str, list[Finding]]

CHECKS: dict[str, Check] = {
    "versions": installation.versions,
    "parts of other packages": installation.added_parts,
    "devices": installation.devices,
    "launch": installation.launch,
    "caches": installation.caches,
    "backends": backends.backends,
    "decoders": formats.decoders,
    "storage": formats.storage,
    "encoders": selfcheck.encoders,
    "training": selfcheck.training,
}
_MARKS = {"ok": "ok", "absent": "-", "problem": "PROBLEM"}


def examine(checks: Mapping[str, Check]) -> Findings:
    """Run checks. One that raises is a problem itself, and the others still run."""
    findings: Findings = {}
    with progress_bar(len(checks), "check", "doctor") as bar:
        for name, check in checks.items():
            findings[name] = []
            try:
                findings[name].extend(check())
            except Exception as error:  # a broken library is what the checks look for
                findings[name].append(problem(name, f"cannot be looked at: {cause_of(error)}", LOCK))
            bar.update()
    return findings


def problems(findings: Findings) -> list[Finding]:
    """What should work and does not."""
    return [one for some in findings.values() for one in some if one.state == "problem"]


def as_text(findings: Findings) -> str:
    """For a terminal: a line for each finding, then what to do about each problem."""
    lines = []
    for name, some in findings.items():
        lines += [name]
        width = max((len(one.name) for one in some), default=0)
        for one in some:
            hint = f" ({one.remedy})" if one.remedy and one.state == "absent" else ""
            lines.append(f"  {_MARKS[one.state]:7}  {one.name:{width}}  {one.said}{hint}")
        lines.append("")
    wrong = problems(findings)
    lines.append(f"{len(wrong)} problems" if len(wrong) != 1 else "1 problem")
    lines += [f"  {one.name}: {one.said}. To mend it: {one.remedy}" for one in wrong]
    return "\n".join(map(printable, lines))


def as_json(findings: Findings) -> dict[str, Any]:
    """{"problems": how many, "checks": {check: [the fields of each `Finding`]}}."""
    return {
        "problems": len(problems(findings)),
        "checks": {name: [asdict(one) for one in some] for name, some in findings.items()},
    }
