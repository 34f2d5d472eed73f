"""PDM: its losses are those of the formulas, its texts belong to images, its controls are what they say."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import paint_street
from safetensors.torch import load_file
from tiny_models import write_tiny_folder
from torch import Tensor

import clipreid
from clipreid.backbones import Backbone, load_backbone
from clipreid.config import configure
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.hub.folder import load_identities
from clipreid.losses.regularisers import orthogonality_loss
from clipreid.methods import pdm
from clipreid.model import Output, untrained_model
from clipreid.prompts.inversion import InversionPrompts
from clipreid.training.inversion import identity_means, styles_of
from clipreid.training.launch import build_model, run_method
from clipreid.training.run import Run, open_run


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("pdm") / "crops", train=4, test=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone that is faster than tiny-clip."""
    folder = tmp_path_factory.mktemp("pdm") / "small"
    write_tiny_folder(folder, context=32, clipreid={"image_size": [64, 32], "raw_logits": False})
    return f"hf:{folder}"


def flags_of(street: Path, output: Path, small: str, **given: Any) -> tuple[Any, Any]:
    usual = {"data": (f"folder:{street}",), "output": output, "threads": 1, "image_size": (64, 32), "backbone": small}
    short = {"prompt_epochs": 2, "epochs": 1, "inversion_width": 16, "inversion_rate": 1e-2, "prompt_warmup": 0}
    return configure(pdm, **{**usual, **short, "identities_per_batch": 4, "images_per_identity": 2, **given})


@pytest.fixture(scope="module")
def trained(street: Path, small: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that keeps the text of every training image."""
    output = tmp_path_factory.mktemp("pdm") / "run"
    return run_method(pdm, *flags_of(street, output, small, targets="image", content_words=2))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Losses --------------------------------------------------------------------------------------------------------------


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def contrast(rows: Tensor, columns: Tensor, labels: list[int], scale: float) -> float:
    """Supervised contrast by loops: the mean over rows of the mean over positives of -log softmax."""
    total = 0.0
    for i, label in enumerate(labels):
        logits = [scale * float(unit(rows[i]) @ unit(column)) for column in columns]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        own = [logits[j] - log_sum for j, other in enumerate(labels) if other == label]
        total -= sum(own) / len(own)
    return total / len(labels)


def test_the_losses_of_stage_1_are_those_of_loops(small: str) -> None:
    backbone = load_backbone(small)
    config = pdm.Config(weight_style=0.5, weight_disentangle=3.0, inversion_width=8)
    prompts = InversionPrompts(backbone, *pdm.networks(backbone, config))
    features, labels, styles = drawn(5, backbone.image.embed_dim), [0, 0, 1, 1, 2], [0, 1, 0, 1, 0]
    module = pdm.InversionLearning(prompts, 7.0, config, torch.zeros(3, backbone.image.embed_dim))
    kinds = torch.zeros(5, dtype=torch.long)
    batch = {"features": features, "labels": torch.tensor(labels), "styles": torch.tensor(styles), "kinds": kinds}
    with torch.no_grad():
        found = {name: float(x) for name, x in module(batch).items()}
        content, style = prompts.content_texts(features, kinds), prompts.style_texts(features)
    assert found == pytest.approx(
        {
            "i2t_loss": contrast(features, content, labels, 7.0),
            "t2i_loss": contrast(content, features, labels, 7.0),
            "style_i2t_loss": 0.5 * contrast(features, style, styles, 7.0),
            "style_t2i_loss": 0.5 * contrast(style, features, styles, 7.0),
            "disentangle_loss": 3 * sum(float(unit(a) @ unit(b)) ** 2 for a, b in zip(content, style, strict=True)) / 5,
        },
        rel=1e-4,
    )


def test_orthogonal_texts_cost_nothing_and_parallel_ones_one() -> None:
    a = torch.eye(3)
    assert orthogonality_loss(a, a.roll(1, 0)).item() == pytest.approx(0, abs=1e-7)
    assert orthogonality_loss(a, -5 * a).item() == pytest.approx(1)


def test_the_text_of_an_identity_is_the_mean_of_its_images() -> None:
    texts, labels = drawn(6, 3), torch.tensor([2, 0, 1, 2, 2, 0])
    expected = torch.stack([texts[labels == identity].mean(0) for identity in range(3)])
    torch.testing.assert_close(identity_means(texts, labels, 3), expected)


def test_with_targets_image_an_image_is_pulled_to_the_texts_of_its_identity_in_the_batch(small: str) -> None:
    backbone = load_backbone(small)
    E = backbone.image.embed_dim
    config = pdm.Config(weight_i2t=2.0)
    module = pdm.ImageTexts(untrained_model(backbone), drawn(9, E, seed=1), 7.0, config)
    labels, rows = [0, 0, 1, 1], [8, 3, 0, 5]
    features = {"projection": drawn(4, E, seed=2)}
    output = Output(features, {"projection": drawn(4, 2, seed=3)})
    found = module.losses(output, {"labels": torch.tensor(labels), "rows": torch.tensor(rows)})
    assert float(found["i2t_loss"]) == pytest.approx(
        2 * contrast(features["projection"], module.texts[rows], labels, 7.0), rel=1e-4
    )
    assert found.keys() == {"id_loss", "triplet_loss", "i2t_loss"}


# Styles --------------------------------------------------------------------------------------------------------------


def data_of(groups: list[int], cameras: list[int]) -> Any:
    sides = torch.tensor(cameras), torch.full((len(cameras),), -1)
    return SimpleNamespace(groups=torch.tensor(groups), sides=sides)


def test_a_style_is_a_camera_or_a_data_set() -> None:
    data = data_of([0, 0, 0, 1, 1], [4, 2, 4, 7, -1])
    by_camera, by_set = (styles_of(data, style) for style in ("camera", "set"))
    assert by_camera[0] == by_camera[2]
    assert len(set(by_camera.tolist())) == 4 == int(by_camera.max()) + 1
    assert by_set.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("style", ["camera", "set"])
def test_one_style_alone_is_refused(style: str, street: Path, small: str, tmp_path: Path) -> None:
    single = tmp_path / "crops"
    shutil.copytree(street, single)
    for image in single.glob("train/*.jpg") if style == "camera" else ():
        identity, camera = image.name[:4], image.name[6]
        image.rename(image.with_name(f"{identity}_c1s1_00000{camera}_00.jpg"))
    with pytest.raises(UserError, match=f"--style {style}: all training images are of one .*--style none"):
        open_run(pdm, *flags_of(single, tmp_path / "run", small, style=style))


# Runs ----------------------------------------------------------------------------------------------------------------


def content_network(street: Path, output: Path, small: str, **given: Any) -> dict[str, Tensor]:
    """The content network behind stage 1."""
    run = run_method(pdm, *flags_of(street, output, small, **given), until="stage1")
    file = sorted((run.folder / "checkpoints").glob("stage1-*"))[-1] / "tensors.safetensors"
    return {name: x for name, x in load_file(file).items() if name.startswith("model.prompts.content.")}


def test_the_style_network_reaches_the_content_through_the_orthogonality_alone(
    street: Path, small: str, tmp_path: Path
) -> None:
    both, without, apart = (
        content_network(street, tmp_path / name, small, **given)
        for name, given in (
            ("both", {}),
            ("without", {"style": "none"}),
            ("apart", {"weight_disentangle": 0.0}),
        )
    )
    assert both.keys() == without.keys() == apart.keys()
    assert all(torch.equal(x, apart[name]) for name, x in without.items())
    assert not all(torch.equal(x, both[name]) for name, x in without.items())


def test_stage_1_has_nothing_that_grows_with_the_identities(street: Path, small: str, tmp_path: Path) -> None:
    sizes = []
    more = paint_street(tmp_path / "more", train=6, test=1)
    for nth, crops in enumerate((street, more)):
        run = open_run(pdm, *flags_of(crops, tmp_path / f"run{nth}", small))
        stage = next(pdm.stages(run, build_model(run), run.config))
        sizes.append(sum(p.numel() for group in stage.optimisers[0].param_groups for p in group["params"]))
        assert sizes[-1] == sum(p.numel() for p in stage.module.parameters() if p.requires_grad)
        run.lock.release()
    assert sizes[0] == sizes[1] > 0


def test_any_image_has_its_text_and_those_of_training_images_are_the_kept_ones(trained: Run, street: Path) -> None:
    before = clipreid.load(trained.folder, strength=0)
    train = load_data(f"folder:{street}").splits["train"]
    kept = load_identities(trained.folder)[0]["image_texts"]  # [N, E]
    images = [train.image(row) for row in range(len(train))]
    texts = pdm.content_texts(before, images)
    torch.testing.assert_close(texts, torch.nn.functional.normalize(kept, dim=1), atol=1e-4, rtol=1e-3)
    assert (texts[0] - texts[-1]).abs().max() > 1e-4
    again = pdm.content_texts(before, images[:3], batch_size=2)
    torch.testing.assert_close(again, texts[:3], atol=1e-5, rtol=1e-4)
    assert (pdm.content_texts(before, images[:3], noun="car") - again).abs().max() > 1e-4


def test_texts_of_other_models_are_refused(trained: Run, backbone: Backbone) -> None:
    with pytest.raises(UserError, match="strength=0"):
        pdm.content_texts(clipreid.load(trained.folder), [])
    with pytest.raises(UserError, match=r"recipes/pdm\.py"):
        pdm.content_texts(untrained_model(backbone), [])


@pytest.fixture
def backbone(small: str) -> Backbone:
    return load_backbone(small)


def test_the_published_run_has_the_networks_and_no_text_of_anybody(trained: Run) -> None:
    heads = clipreid.load(trained.folder).state_dict()
    assert any(name.startswith("aggregator.content.") for name in heads)
    assert not any("text" in name for name in heads if name.startswith("aggregator."))
