"""Run the steps of the Dockerfile without docker, in a folder and a Python environment that are removed afterwards.

    python docker/check.py --build-arg DEVICE=cpu            # the image for CPUs: builds it, tries it, says its size
    python docker/check.py --build-arg DEVICE=cpu --lock     # and that of requirements.lock as a whole beside it

Each COPY, ENV, ARG, WORKDIR and RUN of the stages that the image is made of is carried out, absolute paths below the
folder; the base image is this Python. What needs a system of its own (apt-get, useradd) is told and left out. In the
end the image's command and its health command run. Needs the network, as a build does.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
SYSTEM = ("apt-get", "useradd", "chown")
"""Commands of a RUN that change the system: it is left out."""
# What pip and its connection need of this machine's environment.
_KEPT = re.compile(r"PIP_.*|SSL_CERT_(FILE|DIR)|(HTTPS?|NO)_PROXY|LANG|LC_.*|TMPDIR", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True)
class Step:
    """An instruction and the rest of its line."""

    instruction: str
    text: str


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)


def instructions(text: str) -> Iterator[Step]:
    """The instructions of a Dockerfile, each in one line, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield Step(instruction.upper(), rest.strip())


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM with their defaults, and the stages."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for step in instructions(text):
        if step.instruction == "FROM":
            base, _, name = step.text.partition(" AS ")
            found.append(Stage(base, name or str(len(found))))
        elif found:
            found[-1].steps.append(step)
        else:
            name, _, default = step.text.partition("=")
            arguments[name] = default
    return arguments, found


def plan(text: str, given: Mapping[str, str]) -> tuple[list[str], list[Step]]:
    """The stages of which the last one is made, the image first, and their steps in the order in which they run, each
    ARG with the value that it has."""
    defaults, found = stages(text)
    arguments = {**defaults, **given}
    by_name = {stage.name: stage for stage in found}
    chain = [found[-1]]
    while (base := substituted(chain[0].base, arguments)) in by_name:
        chain.insert(0, by_name[base])
    steps = []
    for step in (step for stage in chain for step in stage.steps):
        if step.instruction == "ARG":
            name, _, default = step.text.partition("=")
            step = Step("ARG", f"{name}={given.get(name, default or defaults.get(name, ''))}")
        steps.append(step)
    return [base, *(stage.name for stage in chain)], steps


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """The text with $NAME and ${NAME} replaced."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def script(step: Step) -> str:
    """What the shell runs of a RUN: without its mounts, of which there are none here."""
    return re.sub(r"--mount=\S+\s+", "", step.text)


def is_of_the_system(step: Step) -> bool:
    return step.instruction == "RUN" and not set(SYSTEM).isdisjoint(step.text.split())


class Build:
    """The steps, carried out below a folder.

    Args:
        folder: gets root/, which stands for the image's /, and python/, its Python environment.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.python = folder / "root", folder / "python"
        self.work = self.root
        self.root.mkdir()
        venv.create(self.python, with_pip=True)
        kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
        path = os.pathsep.join([str(self.python / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
        self.environment = {**kept, "PATH": path, "HOME": str(self._inside("/var/lib"))}
        self.arguments: dict[str, str] = {}
        self.commands: dict[str, list[str]] = {}

    def _inside(self, path: str) -> Path:
        place = self.root / path.lstrip("/") if path.startswith("/") else self.work / path
        place.mkdir(parents=True, exist_ok=True)
        return place

    def carry_out(self, step: Step) -> None:
        """One step; CalledProcessError if its command fails."""
        match step.instruction:
            case "ARG":
                name, _, value = step.text.partition("=")
                self.arguments[name] = value
            case "ENV":
                for word in shlex.split(step.text):
                    name, _, value = word.partition("=")
                    self.environment[name] = str(self._inside(value)) if name == "HOME" else value
            case "WORKDIR":
                self.work = self._inside(step.text)
            case "COPY":
                *sources, target = step.text.split()
                for source in sources:
                    self._copy(ROOT / source, self.work / target)
            case "RUN" if is_of_the_system(step):
                print(f"left out, for it changes a system: RUN {step.text}")
            case "RUN":
                self.run(["/bin/sh", "-c", script(step)], self.arguments)
            case "ENTRYPOINT" | "CMD":
                self.commands[step.instruction] = json.loads(step.text)
            case "HEALTHCHECK":
                self.commands["HEALTHCHECK"] = json.loads(step.text.partition("CMD ")[2])
            case "USER":
                pass
            case _:
                raise ValueError(f"{step.instruction} is not carried out here")

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy(source, target / source.name if target.is_dir() else target)

    def run(self, command: list[str], more: Mapping[str, str] | None = None) -> None:
        print("$", shlex.join(command), flush=True)
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        environment = {**self.environment, **(more or {})}
        subprocess.run([program, *command[1:]], cwd=self.work, env=environment, check=True)


def megabytes(folder: Path) -> int:
    """What a folder takes on the disk, links not followed."""
    blocks = sum(path.lstat().st_blocks for path in folder.rglob("*"))
    return round(512 * blocks / 1e6)


def largest(python: Path, most: int = 6) -> str:
    """The largest folders of an environment's packages."""
    (packages,) = python.glob("lib/python*/site-packages")
    sizes = sorted(((megabytes(path), path.name) for path in packages.iterdir() if path.is_dir()), reverse=True)
    return ", ".join(f"{name} {size} MB" for size, name in sizes[:most])


def check(text: str, given: Mapping[str, str], lock: bool) -> None:
    """Carry out a Dockerfile's steps, run its commands and print what it takes."""
    chain, steps = plan(text, given)
    print(f"{' -> '.join(chain)}; Python {sys.version.split()[0]} stands for the first")
    with tempfile.TemporaryDirectory(prefix="ssamba-image-") as folder:
        build = Build(Path(folder))
        for step in steps:
            build.carry_out(step)
        build.run([*build.commands["ENTRYPOINT"], *build.commands["CMD"]])
        told = f"image: {megabytes(build.python)} MB of packages ({largest(build.python)})"
        told += f", {megabytes(build.root / 'opt')} MB of files"
        try:
            build.run(build.commands["HEALTHCHECK"])
        finally:
            print(told)
    if lock:
        with tempfile.TemporaryDirectory(prefix="ssamba-lock-") as folder:
            build = Build(Path(folder))
            build.run(["pip", "install", "--quiet", "-r", str(ROOT / "requirements.lock")])
            print(f"requirements.lock: {megabytes(build.python)} MB of packages ({largest(build.python)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as of docker build")
    parser.add_argument("--lock", action="store_true", help="also install requirements.lock and say its size")
    arguments = parser.parse_args()
    given = dict(word.partition("=")[::2] for word in arguments.build_arg)
    check(DOCKERFILE.read_text(), given, arguments.lock)


if __name__ == "__main__":
    main()
