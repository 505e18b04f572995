"""A classifier as a program: SsambaModel's logits from waveforms, any batch size, in a process without its code."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.audio import samples_for
from ssamba.errors import UserError
from ssamba.export.program import Program, load_program
from ssamba.export.torch_export import export_program, export_torch, save_program
from ssamba.hub import SsambaModel
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier
from ssamba.models.settings import AudioSettings, ClassifierSettings
from ssamba.ops.conv import reference as reference_conv
from ssamba.ops.scan import reference as reference_scan

ROOT = Path(__file__).parents[2]
RATE, FRAMES = 16000, 64
SAMPLES = samples_for(FRAMES, RATE)
LABELS = ("falling", "high", "low", "rising")
ENDS = {
    "ssamba": ("pad", "segments"),
    "ssast": ("repeat", "rows"),
    "aum": ("repeat", "class"),
    "conformer": ("pad", "statistics"),
    "bilstm": ("repeat", "mean"),
    "ssd": ("pad", "attentive"),
}
"""Encoder -> what becomes of short clips, and the pool."""


def classifier(
    encoder: str, short: str = "repeat", pooling: str = "mean", padding: bool = False, **options: Any
) -> SsambaModel:
    torch.manual_seed(0)
    sizes = {**SIZES[encoder]["nano"], **options}
    body = AudioEncoder(encoder, sizes, 128, FRAMES, 16, 16, 16, 16)
    network = AudioClassifier(body, len(LABELS), pooling, pool_padding=padding)
    with torch.no_grad():
        network.head[1].weight.mul_(20)  # logits that differ by more than a rounding
    audio = AudioSettings(RATE, -4.2, 4.5, short)
    settings = ClassifierSettings(LABELS, "sound", "cross_entropy", pooling, pool_padding=padding)
    return SsambaModel(network, audio, settings)


def recordings(lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Waveforms; the same in one batch, with noise where they have ended; their lengths."""
    generator = torch.Generator().manual_seed(1)
    waveforms = [torch.randn(length, generator=generator) * 0.1 for length in lengths]
    batch = torch.randn(len(lengths), SAMPLES, generator=generator)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return waveforms, batch, torch.tensor(lengths)


def logits_of(model: SsambaModel, waveforms: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        logits = model(*model.feature_extractor(waveforms)).logits
    assert logits is not None
    return logits


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[SsambaModel, Path]]:
    """Encoder -> a model and its program's file."""
    folder, made = tmp_path_factory.mktemp("programs"), {}

    def make(encoder: str) -> tuple[SsambaModel, Path]:
        if encoder not in made:
            model, path = classifier(encoder, *ENDS[encoder]), folder / f"{encoder}.pt2"
            save_program(path, model)
            made[encoder] = model, path
        return made[encoder]

    return make


@pytest.mark.filterwarnings("error:The tensor attributes")
@pytest.mark.parametrize("encoder", ENDS)
def test_a_program_gives_the_models_logits_for_any_batch(
    encoder: str, programs: Callable[[str], tuple[SsambaModel, Path]]
) -> None:
    model, path = programs(encoder)
    program = load_program(path)
    least = samples_for(16, RATE)
    for lengths in ([SAMPLES], [least], [SAMPLES, 4001], [SAMPLES - 1, 9000, least, SAMPLES, 5237]):
        waveforms, batch, own = recordings(lengths)
        wanted, found = logits_of(model, waveforms), program(batch, own)
        assert found.shape == (len(lengths), len(LABELS)) and found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    waveforms, batch, _ = recordings([SAMPLES] * 3)
    torch.testing.assert_close(program(batch), logits_of(model, waveforms), rtol=1e-5, atol=1e-5)
    assert (wanted[0] - wanted[1]).abs().max() > 0.05


def test_a_program_of_an_imported_model_pools_padding() -> None:
    model = classifier("ssast", "pad", "mean", True, hidden_size=24, num_hidden_layers=1)
    waveforms, batch, own = recordings([SAMPLES, samples_for(16, RATE), 5237, samples_for(17, RATE)])
    with torch.no_grad():
        tokens = model.network.encoder(model.feature_extractor(waveforms).input_values).tokens
        found = export_program(model).module()(batch, own)
        torch.testing.assert_close(found, model.network.head(tokens.mean(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["ssamba", "ssast", "aum"])
def test_a_run_becomes_a_program_that_describes_itself(
    encoder: str, finetuned: Callable[[str], Path], tmp_path: Path
) -> None:
    run, out = finetuned(encoder), tmp_path / "model.pt2"
    export_torch(run, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    program, model = load_program(out), SsambaModel.from_pretrained(run)
    assert model.classifier is not None
    assert program.labels == model.classifier.labels and program.label == "sound"
    assert program.problem_type == "single_label_classification" and program.torch == torch.__version__
    assert (program.sampling_rate, program.samples, program.least_samples) == (RATE, SAMPLES, samples_for(16, RATE))
    waveforms, batch, own = recordings([SAMPLES, 7000])
    torch.testing.assert_close(program(batch, own), logits_of(model, waveforms), rtol=1e-5, atol=1e-5)
    config = json.loads((run / "model" / "config.json").read_text())
    assert program.problem_type == config["problem_type"]


def nodes(program: torch.export.ExportedProgram, target: Any) -> Iterator[torch.fx.Node]:
    return (node for node in program.graph.nodes if node.target is target)


@pytest.mark.parametrize("chosen", ["torch-chunked", "mamba-ssm"])
def test_the_scans_backend_is_chosen_where_the_program_runs(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = export_program(classifier("ssamba"))
    scans = list(nodes(program, torch.ops.ssamba.scan.default))
    convolutions = list(nodes(program, torch.ops.ssamba.conv.default))
    assert [node.args[-2:] for node in scans] == [("auto", False)] * 2
    assert [node.args[-1] for node in convolutions] == ["auto"] * 2
    _, batch, own = recordings([SAMPLES, 7000])
    here = program.module()(batch, own)
    asked = []

    def elsewhere(backend: str, device: str, dtype: torch.dtype) -> str:
        asked.append((backend, device))
        return chosen

    # Stand-ins with the same functions: the package needs a GPU.
    monkeypatch.setitem(sys.modules, "ssamba.ops.scan.mamba_ssm_kernels", reference_scan)
    monkeypatch.setitem(sys.modules, "ssamba.ops.conv.mamba_ssm_kernels", reference_conv)
    monkeypatch.setattr("ssamba.ops.scan.operator.resolve_backend", elsewhere)
    monkeypatch.setattr("ssamba.ops.conv.operator.resolve_backend", elsewhere)
    torch.testing.assert_close(program.module()(batch, own), here, rtol=1e-5, atol=1e-5)
    assert asked == [("auto", "cpu")] * 4


def test_a_backend_that_was_asked_for_by_name_stays() -> None:
    model = classifier("ssamba")
    for layer in model.network.encoder.stack.layers:
        layer.mixer.backend = "torch-chunked"
    program = export_program(model)
    assert [node.args[-2:] for node in nodes(program, torch.ops.ssamba.scan.default)] == [("torch-chunked", False)] * 2


def test_a_program_is_a_copy_and_leaves_the_model_as_it_was() -> None:
    model = classifier("ssast").train()
    waveforms, batch, own = recordings([SAMPLES, 7000])
    before = logits_of(model, waveforms)
    program = export_program(model)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in program.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(program.module()(batch, own), before, rtol=1e-5, atol=1e-5)


def test_every_tensor_of_a_program_goes_to_its_device(programs: Callable[[str], tuple[SsambaModel, Path]]) -> None:
    for encoder in ("ssamba", "ssast"):
        program = load_program(programs(encoder)[1], "meta")  # a tensor left on the CPU would be refused
        logits = program.module(
            torch.zeros(3, SAMPLES, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
        )
        assert logits.device.type == "meta" and logits.shape == (3, len(LABELS))


def test_no_part_of_the_file_is_a_pickle(programs: Callable[[str], tuple[SsambaModel, Path]]) -> None:
    model, path = programs("ssamba")
    weights = sum(parameter.numel() * 4 for parameter in model.network.parameters())
    with zipfile.ZipFile(path) as archive:
        contents = {PurePosixPath(name).name: archive.read(name) for name in archive.namelist()}
    for kind in ("weights", "constants"):
        config = json.loads(contents[f"model_{kind}_config.json"])["config"]
        assert config and not any(tensor["use_pickle"] for tensor in config.values())
    assert contents["model.pt"] == b""  # the example that it was made with
    assert weights < path.stat().st_size < weights + 600_000


def in_a_fresh_process(code: str, *arguments: object) -> Any:
    """What `code` prints as JSON, with batch and lengths from a file."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def batch_file(tmp_path: Path) -> Path:
    _, batch, own = recordings([SAMPLES, 7000, 4001])
    torch.save((batch, own), tmp_path / "batch.pt")
    return tmp_path / "batch.pt"


def test_torch_alone_runs_a_program_without_a_scan(
    programs: Callable[[str], tuple[SsambaModel, Path]], batch_file: Path
) -> None:
    model, path = programs("ssast")
    code = (
        "import json, sys, torch\n"
        "held = {'ssamba.json': ''}\n"
        "program = torch.export.load(sys.argv[1], extra_files=held)\n"
        "said = json.loads(held['ssamba.json'])\n"
        "logits = program.module()(*torch.load(sys.argv[2], weights_only=True))\n"
        "known = sorted(name for name in sys.modules if name.split('.')[0] == 'ssamba')\n"
        "print(json.dumps([logits.tolist(), said, logits.requires_grad, known]))\n"
    )
    logits, said, differentiable, known = in_a_fresh_process(code, path, batch_file)
    wanted = logits_of(model, recordings([SAMPLES, 7000, 4001])[0])
    torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-5, atol=1e-5)
    assert said == {
        "labels": list(LABELS),
        "label": "sound",
        "problem_type": "single_label_classification",
        "sampling_rate": RATE,
        "samples": SAMPLES,
        "least_samples": samples_for(16, RATE),
        "torch": torch.__version__,
    }
    assert not differentiable and not known


def test_programs_run_without_what_trains_and_builds_models(
    programs: Callable[[str], tuple[SsambaModel, Path]], batch_file: Path
) -> None:
    made = [programs(encoder) for encoder in SIZES]
    code = (
        "import json, sys\n"
        "from ssamba.export.program import load_program\n"
        "programs = [load_program(path) for path in sys.argv[2:]]\n"
        "import torch\n"
        "batch = torch.load(sys.argv[1], weights_only=True)\n"
        "found = [(program(*batch).tolist(), program.labels) for program in programs]\n"
        "print(json.dumps([found, sorted(sys.modules)]))\n"
    )
    found, known = in_a_fresh_process(code, batch_file, *(path for _, path in made))
    for (logits, labels), (model, _) in zip(found, made, strict=True):
        wanted = logits_of(model, recordings([SAMPLES, 7000, 4001])[0])
        torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-5, atol=1e-5)
        assert tuple(labels) == LABELS
    packages = {name.split(".")[0] for name in known}
    assert not packages & {"lightning", "omegaconf", "webdataset", "huggingface_hub", "safetensors", "soundfile"}
    ours = {name.split(".")[1] for name in known if name.startswith("ssamba.")}
    assert ours == {"ops", "errors", "files", "printable", "export"} and "ssamba.export.torch_export" not in known


def test_torch_with_the_operators_runs_a_program_with_a_scan(
    programs: Callable[[str], tuple[SsambaModel, Path]], batch_file: Path
) -> None:
    model, path = programs("ssamba")
    code = (
        "import json, sys, torch, ssamba.ops\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "print(json.dumps(module(*torch.load(sys.argv[2], weights_only=True)).tolist()))\n"
    )
    logits = torch.tensor(in_a_fresh_process(code, path, batch_file))
    wanted = logits_of(model, recordings([SAMPLES, 7000, 4001])[0])
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def program(programs: Callable[[str], tuple[SsambaModel, Path]]) -> Program:
    return load_program(programs("ssast")[1])


def test_what_a_program_cannot_take(program: Program) -> None:
    batch = torch.zeros(2, SAMPLES)
    with pytest.raises(ValueError, match=rf"waveforms are torch.float32 \(2, 99\); expected .* \(B, {SAMPLES}\)"):
        program(torch.zeros(2, 99))
    with pytest.raises(ValueError, match="waveforms are torch.float64"):
        program(batch.double())
    with pytest.raises(ValueError, match=r"lengths are torch.int64 \(3,\); expected torch.int64 \(2,\)"):
        program(batch, torch.tensor([SAMPLES] * 3))
    for wrong in (samples_for(16, RATE) - 1, SAMPLES + 1, 0):
        with pytest.raises(ValueError, match=rf"lengths are \[{SAMPLES}, {wrong}\]; expected 2800 to {SAMPLES}"):
            program(batch, torch.tensor([SAMPLES, wrong]))


def test_what_is_no_program(tmp_path: Path, programs: Callable[[str], tuple[SsambaModel, Path]]) -> None:
    with pytest.raises(UserError, match="none.pt2 cannot be read"):
        load_program(tmp_path / "none.pt2")
    text, archive, cut = (tmp_path / f"{name}.pt2" for name in ("text", "archive", "cut"))
    text.write_text("no archive")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.json", "{}")
    cut.write_bytes(programs("ssast")[1].read_bytes()[:-5000])
    for wrong in (text, archive, cut):
        with pytest.raises(UserError, match=f"{wrong.name} holds no program; expected a .pt2"):
            load_program(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": "dog"}, "Expected `array`, got `str` at `labels`"),
        ({"samples": 0}, "at `samples`"),
        ({"sampling_rate": 1e3}, "cannot be used"),
        ({"problem_type": "x"}, "Invalid enum value 'x' at `problem_type`"),
        ({"least_samples": None}, "at `least_samples`"),
        ("[" * 100_000, "cannot be used"),
        (b"\xff", "cannot be used"),
    ],
)
def test_a_description_that_is_none(
    change: Any, said: str, tmp_path: Path, programs: Callable[[str], tuple[SsambaModel, Path]]
) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(programs("ssast")[1]) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            content: Any = source.read(member)
            if PurePosixPath(member.filename).name == "ssamba.json":
                content = json.dumps({**json.loads(content), **change}) if isinstance(change, dict) else change
            target.writestr(member.filename, content)
    with pytest.raises(UserError, match=said):
        load_program(path)


def test_an_archive_that_unpacks_to_more_than_it_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/extra/ssamba.json", " " * 10_000_000 + "{}")
    with pytest.raises(UserError, match="bomb.pt2 holds no program"):
        load_program(tmp_path / "bomb.pt2")


def test_what_becomes_no_program(
    pretrained: Callable[[str], Path], finetuned: Callable[[str], Path], tmp_path: Path
) -> None:
    run, out = finetuned("ssast"), tmp_path / "model.pt2"
    with pytest.raises(UserError, match="a pretrained model says nothing of a clip; expected a fine-tuned one"):
        export_torch(pretrained("ssast"), out)
    with pytest.raises(UserError, match="expected pad or repeat"):
        export_program(classifier("ssast", "keep"))
    with pytest.raises(UserError, match=r"model.pth is to be a program; expected a name that ends in .pt2"):
        export_torch(run, tmp_path / "model.pth")
    with pytest.raises(UserError, match="there is no folder"):
        export_torch(run, tmp_path / "nowhere" / "model.pt2")
    with pytest.raises(UserError, match="neither a folder here nor a model"):
        export_torch(tmp_path / "no model", out)
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    with pytest.raises(UserError, match="model.pt2 exists; --overwrite"):
        export_torch(run, out)
    assert out.read_text() == "mine"
    export_torch(run, out, overwrite=True)
    assert load_program(out).labels == LABELS
    out.unlink()
    out.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export_torch(run, out, overwrite=True)


def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, no_room: Callable[[int], AbstractContextManager[None]]
) -> None:
    with no_room(10_000), pytest.raises(UserError, match="model.pt2 cannot be written: File too large"):
        save_program(tmp_path / "model.pt2", classifier("ssast"))
    assert not list(tmp_path.iterdir())
