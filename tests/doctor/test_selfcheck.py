"""The values that encoders and training are compared with, and what is said where they are others."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ssamba.config import ENCODERS
from ssamba.doctor import selfcheck
from ssamba.losses import info_nce


def test_stored_values_are_those_of_the_code() -> None:
    """`python -m ssamba.doctor.selfcheck` makes them again."""
    stored = json.loads(selfcheck.EXPECTED.read_text())
    assert set(stored) == {*ENCODERS, "training"}
    torch.rand(3)
    state = torch.get_rng_state()
    for encoder in ENCODERS:
        assert selfcheck.encoder_values(encoder, "cpu") == pytest.approx(stored[encoder], rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_values_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads(selfcheck.EXPECTED.read_text())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ssamba.losses.info_nce", lambda *given: info_nce(*given)._replace(loss=torch.tensor(1.0)))
    wrong = {one.name: one for one in selfcheck.encoders()}
    assert list(wrong) == [f"{encoder} on cpu" for encoder in ENCODERS]
    for encoder in ENCODERS:
        one = wrong[f"{encoder} on cpu"]
        assert one.state == "problem"
        assert f"contrastive is 1, not {stored[encoder]['contrastive']:.6g}" in one.said
        assert "reconstruction" not in one.said  # what is right is not told


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it was ended by SIGILL"),
        (
            "import sys; print('a\\nssamba: no room', file=sys.stderr); sys.exit(2)",
            "ended with status 2: ssamba: no room",
        ),
        ("", "it computes something else: contrastive 1 is nan, not"),
    ],
)
def test_a_training_that_fails_is_told(code: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "TRAIN", code)
    (one,) = selfcheck.training()
    assert one.state == "problem" and cause in one.said


def test_the_training_knows_nothing_of_who_started_the_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = f"import os, json; open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(selfcheck, "TRAIN", code)
    for name in ("SLURM_NTASKS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "MASTER_ADDR"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SSAMBA_TEST", sys.executable)
    list(selfcheck.training())
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["SSAMBA_TEST"] == sys.executable
    assert not [
        name for name in seen if name.startswith(("SLURM_", "RANK", "WORLD", "LOCAL", "TORCHELASTIC", "MASTER"))
    ]
