"""The Dockerfile and what carries out its steps without docker: they agree, with each other and with the package."""

import fnmatch
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
TEXT = (DOCKER / "Dockerfile").read_text()


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("docker_check", DOCKER / "check.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["docker_check"] = module  # where dataclasses look for it
    specification.loader.exec_module(module)
    return module


check = _load()
project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
each_device = pytest.mark.parametrize("device", ["cuda", "cpu"])


def steps_of(**arguments: str) -> list[tuple[str, str]]:
    return [(step.instruction, step.text) for step in check.plan(TEXT, arguments)[1]]


# Parsing


def test_a_dockerfile_is_read_as_docker_reads_it() -> None:
    text = (
        "# A comment\nARG KIND=a\nARG OTHER\nFROM python:3 AS first\nENV X=1\n"
        "# another\nRUN one \\\n # within\n && two\n"
        'FROM first AS with-a\nARG LEVEL=3\nFROM with-${KIND} AS last\nARG KIND\nCOPY a b ./\nCMD ["--help"]\n'
    )
    chain, steps = check.plan(text, {"LEVEL": "5"})
    assert chain == ["python:3", "first", "with-a", "last"]
    told = [(step.instruction, " ".join(step.text.split())) for step in steps]
    assert told == [
        ("ENV", "X=1"),
        ("RUN", "one && two"),
        ("ARG", "LEVEL=5"),
        ("ARG", "KIND=a"),
        ("COPY", "a b ./"),
        ("CMD", '["--help"]'),
    ]
    assert check.plan(text, {"KIND": "b"})[0] == ["with-b", "last"]  # an image of that name


def test_steps_are_carried_out_below_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(venv, "create", lambda place, with_pip: (place / "bin").mkdir(parents=True))
    text = (
        "FROM python:3\nARG WORD=hello\nENV GREETING=world HOME=/var/me\nWORKDIR /opt/it\n"
        "COPY pyproject.toml docker ./\n"
        'RUN --mount=type=bind,from=x,target=/y echo "$WORD $GREETING" > said && mkdir kept\n'
        'RUN useradd me > users\nUSER me\nWORKDIR kept\nRUN pwd > place && echo "$HOME" > home\n'
        'HEALTHCHECK --interval=1h CMD ["x", "y"]\nENTRYPOINT ["x"]\nCMD ["z"]\n'
    )
    build = check.Build(tmp_path)
    for step in check.plan(text, {})[1]:
        build.carry_out(step)
    place = tmp_path / "root" / "opt" / "it"
    assert (place / "said").read_text() == "hello world\n"
    assert (place / "pyproject.toml").is_file() and (place / "check.py").is_file()
    assert not (place / "users").exists()  # what is of the system is left out
    assert (place / "kept" / "place").read_text().strip() == str(place / "kept")
    assert (place / "kept" / "home").read_text().strip() == str(tmp_path / "root" / "var" / "me")
    assert build.commands == {"HEALTHCHECK": ["x", "y"], "ENTRYPOINT": ["x"], "CMD": ["z"]}
    with pytest.raises(subprocess.CalledProcessError):
        build.carry_out(check.Step("RUN", "false"))
    with pytest.raises(ValueError, match="VOLUME is not carried out here"):
        build.carry_out(check.Step("VOLUME", "/x"))


def test_sizes_are_those_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(os.urandom(3_000_000))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert check.megabytes(tmp_path) == 3


# The Dockerfile


@each_device
def test_every_step_can_be_carried_out(device: str) -> None:
    chain, steps = check.plan(TEXT, {"DEVICE": device})
    assert chain == ["python:3.12-slim", "base", f"torch-{device}", "image"]
    known = {"ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD", "HEALTHCHECK", "USER"}
    assert {step.instruction for step in steps} <= known
    left_out = [step.text for step in steps if check.is_of_the_system(step)]
    assert len(left_out) == 1 and left_out[0].startswith("useradd")
    for step in steps:
        if step.instruction == "RUN":
            subprocess.run(["/bin/sh", "-n", "-c", check.script(step)], check=True)


@each_device
def test_what_is_copied_is_there_and_reaches_docker(device: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = {word for kind, text in steps_of(DEVICE=device) if kind == "COPY" for word in text.split()[:-1]}
    assert copied == set(sent) and all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch.fnmatch(name, "*secret*") or name == "." for name in copied)


@each_device
def test_the_image_runs_as_a_user_and_can_be_asked_how_it_is(device: str) -> None:
    steps = dict(steps_of(DEVICE=device))  # the last of each
    assert steps["USER"] == "ssamba" and steps["WORKDIR"] == "/workspace"
    assert steps["HEALTHCHECK"].endswith('CMD ["ssamba", "doctor"]')
    assert (steps["ENTRYPOINT"], steps["CMD"]) == ('["ssamba"]', '["--help"]')
    order = [kind for kind, _ in steps_of(DEVICE=device)]
    assert "RUN" not in order[order.index("USER") :]


def test_torch_is_the_locked_pair_and_nothing_else_is_newer_than_the_lock() -> None:
    assert locked["torch"] == locked["torchaudio"] == "2.11.0"
    for step in (step for stage in check.stages(TEXT)[1] for step in stage.steps if step.instruction == "RUN"):
        for command in re.findall(r"pip install[^&;]*", step.text):
            assert "-c requirements.lock" in command or "--no-deps" in command


def test_an_index_is_the_one_that_is_given_and_only_for_torch() -> None:
    (run,) = [text for kind, text in steps_of(DEVICE="cpu", INDEX="here") if kind == "RUN" and "INDEX" in text]
    assert run == (
        'if [ -n "$INDEX" ]; then pip install -i "$INDEX" --no-deps -c requirements.lock torch torchaudio; fi'
    )
    assert ("ARG", "INDEX=here") in steps_of(DEVICE="cpu", INDEX="here")
    assert not [text for kind, text in steps_of() if "INDEX" in text]


def test_what_an_image_for_cpus_leaves_out_is_what_torch_brings() -> None:
    lines = (DOCKER / "gpu_only.txt").read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert set(names) <= set(locked) and "triton" in names
    assert not set(names) & {re.split(r"[<>=\[;! ]", one)[0] for one in project["dependencies"]}
    assert all(name == "triton" or name.startswith(("cuda-", "nvidia-")) for name in names)
    steps = [text for kind, text in steps_of(DEVICE="cpu") if kind == "RUN" and "gpu_only.txt" in text]
    assert len(steps) == 1 and '[ "$DEVICE" = cpu ]' in steps[0]


def test_extras_and_kernels_are_those_of_the_package() -> None:
    (extras,) = [text.partition("=")[2] for kind, text in steps_of() if kind == "ARG" and text.startswith("EXTRAS")]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    arguments, stages = check.stages(TEXT)
    assert arguments == {"DEVICE": "cuda", "MAMBA_FORCE_BUILD": "FALSE"}
    by_name = {stage.name: stage for stage in stages}
    assert by_name["mamba"].base == "mamba-${MAMBA_FORCE_BUILD}" and {"mamba-TRUE", "mamba-FALSE"} <= set(by_name)
    build = by_name["mamba-TRUE"].steps[-1].text
    assert build.startswith("MAMBA_FORCE_BUILD=TRUE") and f'"{project["optional-dependencies"]["cuda"][0]}"' in build
