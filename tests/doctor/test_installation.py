"""Versions, devices, caches and launchers, as the doctor sees them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssamba.doctor import installation
from ssamba.doctor.findings import Finding
from ssamba.jobs import usable_cores


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


@pytest.fixture
def version_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Let a package have another version, or none."""
    real = metadata.version

    def change(package: str, version: str | None) -> None:
        def pretended(name: str) -> str:
            if name != package:
                return real(name)
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", pretended)

    return change


@pytest.fixture
def pip_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let pip check say something, without its second."""

    def change(text: str) -> None:
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))

    change("")
    return change


def test_versions_are_those_that_are_installed(
    pip_says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ['mkdocs-material>=9.8; extra == "docs"', 'old>=1; python_version < "3.8" and extra == "speech"']
    required = [*(metadata.requires("ssamba") or []), *others]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    found = by_name(installation.versions())
    for name in ("torch", "torchaudio", "lightning", "webdataset", "numba", "numpy"):
        assert found[name] == Finding(name, "ok", metadata.version(name))
    assert {"wandb", "mamba-ssm", "triton", "s3fs", "gcsfs", "adlfs", "av"} <= set(found)
    assert found["old"] == Finding("old", "absent", "not for this Python or platform")
    assert not {"pytest", "mkdocs-material"} & set(found)  # of those who work on the package
    assert not [one for one in found.values() if one.state == "problem"]


def test_what_is_needed_and_missing_is_a_problem_and_an_extra_is_none(
    version_of: Callable[[str, str | None], None], pip_says: Callable[[str], None]
) -> None:
    version_of("webdataset", None)
    missing = by_name(installation.versions())["webdataset"]
    assert (missing.state, missing.said) == ("problem", "not installed") and "pip install webdataset" in missing.remedy
    version_of("wandb", None)
    missing = by_name(installation.versions())["wandb"]
    assert (missing.state, missing.remedy) == ("absent", "pip install 'ssamba[wandb]'")


def test_versions_that_do_not_go_together_are_told(
    version_of: Callable[[str, str | None], None], pip_says: Callable[[str], None]
) -> None:
    version_of("torchaudio", "2.10.1")
    pip_says("other 1 requires x\nssamba 0.1.0 has requirement torch<2.12, but you have torch 2.13.0.\n")
    found = by_name(installation.versions())
    pair = found["torch and torchaudio"]
    assert pair.state == "problem" and "torchaudio 2.10.1 are of two releases" in pair.said
    required = found["what ssamba requires"]
    assert (required.state, required.said) == (
        "problem",
        "ssamba 0.1.0 has requirement torch<2.12, but you have torch 2.13.0.",
    )
    assert "requirements.lock" in pair.remedy and "requirements.lock" in required.remedy


def test_devices_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(installation, "DRIVER", tmp_path / "none")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2500000000\n")
    monkeypatch.setattr(installation, "CGROUP", tmp_path)
    found = by_name(installation.devices())
    assert found["cores"].said.startswith(f"{usable_cores()} of {os.cpu_count()} usable, for 1.5 cores' time; ")
    assert found["memory"].said.endswith(", at most 2.5 GB for this container")
    assert found["GPU"].state == "absent"


def test_a_gpu_that_torch_does_not_find_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "version").write_text("NVRM version: 580")
    monkeypatch.setattr(installation, "DRIVER", tmp_path / "version")
    assert "built without CUDA, finds no GPU" in by_name(installation.devices())["GPU"].said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # meant
    assert by_name(installation.devices())["GPU"].state == "absent"


def test_caches_are_where_they_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ssamba.ops.kernel_cache.config.CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = by_name(installation.caches())
    free = f"{shutil.disk_usage(tmp_path).free / 1e9:.0f}"
    assert found["compiled kernels"].said.startswith(f"{tmp_path / 'kernels'} (not made yet), {free}"[:-1])
    assert found["shards from elsewhere"].said.startswith(str(tmp_path / "cache" / "ssamba" / "shards"))
    assert not list(tmp_path.iterdir())  # looked at, and not made


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("ssamba.ops.kernel_cache.config.CACHE_DIR", str(tmp_path / "file" / "kernels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = by_name(installation.caches())
    kernels, shards = found["compiled kernels"], found["shards from elsewhere"]
    assert kernels.state == shards.state == "problem"
    assert f"{tmp_path / 'file'} takes no new file (Not a directory)" in kernels.said
    assert "NUMBA_CACHE_DIR" in kernels.remedy and "data.cache" in shards.remedy


def test_a_disk_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**7))
    shards = by_name(installation.caches())["shards from elsewhere"]
    assert shards.state == "problem" and shards.said.endswith("0.1 GB free") and shards.remedy.startswith("make room")


def test_the_launcher_and_its_variables_without_secrets() -> None:
    environment = {
        "SLURM_NTASKS": "8",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_PROCID": "5",
        "SLURM_JOB_NAME": "train",
        "HTTPS_PROXY": "http://me:secret@proxy:1",
        "WANDB_API_KEY": "hidden",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }
    found = by_name(installation.launch(environment))
    assert found["launcher"].said == (
        "Slurm, 4 processes on each of 2 nodes; this is rank 5 (trainer.devices=4 trainer.num_nodes=2)"
    )
    assert found["SLURM_PROCID"].said == "5"
    assert found["HTTPS_PROXY"].said == "http://me:***@proxy:1"
    assert "hidden" not in str(found) and "secret@" not in str(found)


def test_a_launcher_that_does_not_say_enough_is_a_problem() -> None:
    (launcher, *_) = installation.launch({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"})
    assert launcher.state == "problem" and "--ntasks-per-node" in launcher.said
    (launcher,) = installation.launch({})
    assert launcher.state == "ok" and launcher.said.startswith("none")
    (launcher, *_) = installation.launch({"RANK": "x"})
    assert launcher.state == "problem" and "RANK is 'x'" in launcher.said
