"""Pretraining that starts from weights of the originals' authors, under another objective than theirs."""

from pathlib import Path

import pytest
import torch

from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import PretrainRecipe, load_recipe
from ssamba.models.checkpoint import load_model, save_model
from ssamba.models.convert.transfer import AUDIOSET_LIBRISPEECH
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import read_config

TAUGHT = [
    "objective.parts.contrastive=0",
    "objective.parts.reconstruction=0",
    "objective.parts.latent=1",
    "objective.parts.clip=1",
    "mask.per_clip=2",
]


@pytest.fixture(scope="module", params=["ssamba", "ssast"])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Encoder, a pretraining checkpoint in its authors' format, of clips of 64 frames, and the folder of its import."""
    folder, encoder = tmp_path_factory.mktemp("theirs"), request.param
    torch.manual_seed(7)
    model = MaskedPatchModel(AudioEncoder(encoder, SIZES[encoder]["nano"], 128, 64, 16, 16, 16, 16))
    save_model(folder / "ours", model, AUDIOSET_LIBRISPEECH)
    assert main(["export", str(folder / "ours"), str(folder / "theirs.pth"), "--format", encoder]) == 0
    heads = [] if encoder == "ssamba" else ["--num-attention-heads", "3"]
    assert main(["import", str(folder / "theirs.pth"), str(folder / "imported"), *heads]) == 0
    return encoder, folder / "theirs.pth", folder / "imported"


def test_student_and_teacher_begin_as_the_imported_encoder(
    imported: tuple[str, Path, Path], recipes: dict[str, Path]
) -> None:
    encoder, checkpoint, folder = imported
    words = ["run_dir=unused", f"model.encoder={encoder}", f"model.pretrained={folder}", *TAUGHT]
    recipe = load_recipe(recipes["pretrain"], words)
    assert isinstance(recipe, PretrainRecipe) and recipe.model.residual is None
    built = build_pretrainer(recipe)
    assert (built.audio.mean, built.audio.std) == (AUDIOSET_LIBRISPEECH.mean, AUDIOSET_LIBRISPEECH.std)
    assert built.recipe.model.patch_order == "frequency"
    if encoder == "ssamba":
        assert built.recipe.model.residual == "doubling" == built.module.model.encoder.stack.residual
    theirs = torch.load(checkpoint, weights_only=True)
    wanted = load_model(folder).model.encoder.state_dict()
    assert built.module.teacher is not None
    for of in (built.module.model.encoder, built.module.teacher.encoder):
        leading = of.stack.num_class_tokens
        assert torch.equal(of.positions.flatten(0, 1), theirs["module.v.pos_embed"][0, leading:])
        own = of.state_dict()
        assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own)
    # The originals' heads are of other objectives: the part's own begins afresh, and differs with the seed.
    other = load_recipe(recipes["pretrain"], [*words, "seed=1"])
    assert isinstance(other, PretrainRecipe)
    ours, others = (one.module.model.more_heads["latent"].state_dict() for one in (built, build_pretrainer(other)))
    assert not torch.equal(ours["projection.0.weight"], others["projection.0.weight"])


def test_a_continued_model_is_exported_for_the_originals_again(
    imported: tuple[str, Path, Path], recipes: dict[str, Path], tmp_path: Path
) -> None:
    encoder, checkpoint, folder = imported
    run = tmp_path / "run"
    words = [f"run_dir={run}", f"model.encoder={encoder}", f"model.pretrained={folder}", *TAUGHT]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 0
    before, after = read_config(folder), read_config(run)
    assert after == before
    assert encoder != "ssamba" or after["residual"] == "doubling"
    assert main(["export", str(run), str(tmp_path / "again.pth"), "--format", encoder]) == 0
    theirs, again = (torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / "again.pth"))
    assert theirs.keys() == again.keys()
    assert {name: x.shape for name, x in theirs.items()} == {name: x.shape for name, x in again.items()}
    assert not torch.equal(theirs["module.v.patch_embed.proj.weight"], again["module.v.patch_embed.proj.weight"])
