"""Every recipe that is shipped loads, and its encoder can be built, whichever encoder is asked for."""

from pathlib import Path

import pytest
import torch

from ssamba.build.models import build_encoder, settle_variant
from ssamba.config import ENCODERS, FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, parameter_count

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {"pretrain": PretrainRecipe, "finetune": FinetuneRecipe}
PATHS = [path for kind in KINDS for path in sorted((RECIPES / kind).glob("*.yaml"))]
each_recipe = pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(RECIPES)))

PRETRAINED = [path for path in sorted((RECIPES / "finetune").glob("*.yaml")) if load_recipe(path).model.pretrained]
# The classes and frames of AuM's base models from scratch, and their millions of parameters.
PUBLISHED = [
    ("aum_audioset", 527, 1024, 92.1),
    ("aum_as20k", 527, 1024, 92.1),
    ("aum_vggsound", 309, 1024, 91.9),
    ("aum_voxceleb", 1251, 1024, 92.7),
    ("aum_speech_commands_v2", 35, 128, 91.4),
    ("aum_epic_sounds", 44, 1024, 91.7),
]


def test_there_are_recipes_of_both_kinds() -> None:
    assert all(any((RECIPES / kind).glob("*.yaml")) for kind in KINDS)


@each_recipe
def test_it_is_of_its_folders_kind(path: Path) -> None:
    kind = path.parent.name
    recipe = load_recipe(path, kind=kind if kind in KINDS else None)
    assert type(recipe) is KINDS[recipe.task_type]
    assert not Path(recipe.run_dir).is_absolute()
    assert not any(Path(source).is_absolute() for source in recipe.data.train)


@pytest.mark.parametrize("encoder", ENCODERS)
@each_recipe
def test_one_word_changes_its_encoder(path: Path, encoder: str) -> None:
    recipe = load_recipe(path, ["model.pretrained=null", f"model.encoder={encoder}"])
    with torch.device("meta"):
        built = build_encoder(settle_variant(recipe))
        model = AudioClassifier(built, 2, "mean") if recipe.task_type == "finetune" else MaskedPatchModel(built)
    assert built.arguments["encoder"] == encoder
    audio, patch = recipe.audio, recipe.model
    assert built.patch_shape[:2] == (patch.fshape, patch.tshape)
    rows, columns = built.grid
    # The grid reaches to the end of the clip: no further patch fits.
    steps = (patch.frequency_stride or patch.fshape, patch.time_stride or patch.tshape)
    for count, step, size, whole in zip(
        (rows, columns), steps, (patch.fshape, patch.tshape), (audio.num_mel_bins, audio.max_length), strict=True
    ):
        assert (count - 1) * step + size <= whole < count * step + size
    assert model.encoder is built


@pytest.mark.parametrize(("name", "classes", "frames", "millions"), PUBLISHED)
def test_aum_from_scratch_is_what_its_authors_publish(name: str, classes: int, frames: int, millions: float) -> None:
    recipe = load_recipe(RECIPES / "finetune" / f"{name}.yaml")
    assert isinstance(recipe, FinetuneRecipe) and recipe.model.pretrained is None
    assert (recipe.model.encoder, recipe.audio.max_length) == ("aum", frames)
    with torch.device("meta"):
        encoder = build_encoder(settle_variant(recipe))
        model = AudioClassifier(encoder, classes, recipe.task.pooling, recipe.task.head_norm)
    assert encoder.arguments["options"]["scan_layout"] == "fo_bi"
    # Theirs have no mask token.
    assert round((parameter_count(model) - encoder.hidden_size) / 1e6, 1) == millions
    assert (recipe.task.loss == "bce") == (classes == 527)


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.name)
def test_weights_to_start_from_are_those_of_a_pretraining_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    makers = [load_recipe(made) for made in (RECIPES / "pretrain").glob("*.yaml")]
    (maker,) = [made for made in makers if made.run_dir == recipe.model.pretrained]
    ours, theirs = recipe.model, maker.model
    assert (ours.encoder, ours.size) == (theirs.encoder, theirs.size) and ours.residual in (None, theirs.residual)
    assert (ours.fshape, ours.tshape) == (theirs.fshape, theirs.tshape)
    assert recipe.audio.sampling_rate == maker.audio.sampling_rate
