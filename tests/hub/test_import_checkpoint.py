"""Checkpoints of the original CLIP-ReID: imported, they give the features that an independent forward gives.

The reference below is written from the published description alone: taps, side information, concatenation, norm.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import clipreid
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.evaluation.score import score
from clipreid.hub import load_identities
from clipreid.hub.import_checkpoint import find_geometry, import_checkpoint

State = dict[str, Tensor]
WIDTH, EMBED, PATCH, IDENTITIES = 128, 24, 16, 5
COEFFICIENT = 3.0


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "import-cache"))


def published(patches: int = 128, rows: int = 0, middle: bool = False) -> State:
    """A small random state dict with the names of the released checkpoints; two blocks, heads of 64."""
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int, std: float = 0.1, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(*shape, generator=g)

    tower = {
        "class_embedding": draw(WIDTH),
        "positional_embedding": draw(1 + patches, WIDTH),
        "proj": draw(WIDTH, EMBED),
        "conv1.weight": draw(WIDTH, 3, PATCH, PATCH, std=0.05),
    }
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{n}.ln_{i}" for n in (0, 1) for i in (1, 2))):
        tower |= {f"{norm}.weight": draw(WIDTH, std=0.3, mean=1.0), f"{norm}.bias": draw(WIDTH)}
    for block in (f"transformer.resblocks.{n}." for n in (0, 1)):
        shapes = {"attn.in_proj_": (3 * WIDTH, WIDTH), "attn.out_proj.": (WIDTH, WIDTH)}
        shapes |= {"mlp.c_fc.": (4 * WIDTH, WIDTH), "mlp.c_proj.": (WIDTH, 4 * WIDTH)}
        for name, shape in shapes.items():
            tower |= {f"{block}{name}weight": draw(*shape), f"{block}{name}bias": draw(shape[0])}
    state = {f"image_encoder.{name}": tensor for name, tensor in tower.items()}
    for name, width in (("", WIDTH), ("_proj", EMBED)):
        state |= {f"bottleneck{name}.weight": draw(width, mean=1.0), f"bottleneck{name}.bias": torch.zeros(width)}
        state |= {f"bottleneck{name}.running_mean": draw(width), f"bottleneck{name}.running_var": draw(width).abs()}
        state[f"bottleneck{name}.num_batches_tracked"] = torch.tensor(7)
        state[f"classifier{name}.weight"] = draw(IDENTITIES, width)
    state |= {"text_encoder.text_projection": draw(8, 8), "prompt_learner.cls_ctx": draw(IDENTITIES, 4, 8)}
    if rows:
        state["cv_embed"] = draw(*((rows, 1, WIDTH) if middle else (rows, WIDTH)), std=0.5)
    return state


def original(state: State, images: Tensor, stride: int = PATCH, side: Tensor | None = None) -> Tensor:
    """Features of the original at test: pre-neck x12 and proj side by side, normalised as a whole. side: [B, C]."""
    w = {name.removeprefix("image_encoder."): tensor for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    pixels = (images.float() / 255 - 0.5) / 0.5
    patches = F.conv2d(pixels, w["conv1.weight"], stride=stride).flatten(2).transpose(1, 2)
    cls = w["class_embedding"].expand(len(pixels), 1, WIDTH)
    if side is not None:
        cls = cls + side[:, None]
    x = norm(torch.cat([cls, patches], 1) + w["positional_embedding"], "ln_pre")
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        y = norm(x, f"{block}.ln_1") @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(2, (WIDTH // 64, 64)).transpose(1, 2) for part in y.chunk(3, dim=2))
        y = ((q @ k.transpose(2, 3) / 8).softmax(3) @ v).transpose(1, 2).flatten(2)
        x = x + y @ w[f"{block}.attn.out_proj.weight"].T + w[f"{block}.attn.out_proj.bias"]
        y = norm(x, f"{block}.ln_2") @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
    x12 = norm(x, "ln_post")[:, 0]
    feature = torch.cat([x12, x12 @ w["proj"]], dim=1)
    return feature / feature.norm(dim=1, keepdim=True)


def noise(size: tuple[int, int] = (256, 128), count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def save(state: State, folder: Path, prefix: str = "") -> Path:
    file = folder / "checkpoint.pth"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, file)
    return file


GEOMETRIES = {
    "person": (128, (256, 128), 16),
    "overlap": (210, (256, 128), 12),
    "vehicle": (256, (256, 256), 16),
    "vehicle overlap": (441, (256, 256), 12),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_features_are_those_of_the_original(kind: str, prefix: str, tmp_path: Path) -> None:
    patches, size, stride = GEOMETRIES[kind]
    state, run = published(patches), tmp_path / "run"
    made = import_checkpoint(save(state, tmp_path, prefix), run)
    model = clipreid.load(run)
    assert (model.image_size, model.tower.stride, model.tower.config.heads) == (size, stride, 2)
    expected = original(state, noise(size), stride)
    assert expected.shape == (3, WIDTH + EMBED)
    assert (model.embed(noise(size)) - expected).abs().max() < 1e-5
    assert torch.equal(made.embed(noise(size)), model.embed(noise(size)))


@pytest.mark.parametrize("middle", [False, True])
def test_side_information_of_the_original(middle: bool, tmp_path: Path) -> None:
    """Row r belongs to camera r + 1; an unknown one gets the mean of all rows."""
    state = published(210, rows=6, middle=middle)
    import_checkpoint(save(state, tmp_path), tmp_path / "run", sie="camera", sie_coefficient=COEFFICIENT)
    model, table = clipreid.load(tmp_path / "run"), COEFFICIENT * state["cv_embed"].reshape(6, WIDTH)
    assert model.config.cameras == (1, 2, 3, 4, 5, 6)
    found = model.embed(noise(), cameras=[6, 1, 99])
    expected = original(state, noise(), 12, torch.stack([table[5], table[0], table.mean(0)]))
    assert (found - expected).abs().max() < 1e-5
    everyone = original(state, noise(), 12, table.mean(0).expand(3, -1))
    assert (model.embed(noise()) - everyone).abs().max() < 1e-5
    assert (found[:2] - everyone[:2]).abs().max() > 1e-3


def test_cameras_and_views_together(tmp_path: Path) -> None:
    """The published row number: camera index x number of views + view index."""
    state, file = published(256, rows=6), tmp_path / "checkpoint.pth"
    save(state, tmp_path)
    import_checkpoint(file, tmp_path / "run", sie="camera+view", views=3)
    model = clipreid.load(tmp_path / "run")
    assert (model.config.cameras, model.config.views) == ((1, 1, 1, 2, 2, 2), (0, 1, 2, 0, 1, 2))
    found = model.embed(noise((256, 256)), cameras=[2, 1, 2], views=[0, 2, 2])
    expected = original(state, noise((256, 256)), 16, state["cv_embed"][[3, 2, 5]])
    assert (found - expected).abs().max() < 1e-5
    import_checkpoint(file, tmp_path / "views", sie="view")
    found = clipreid.load(tmp_path / "views").embed(noise((256, 256)), cameras=[2, 1, 2], views=[0, 5, 2])
    expected = original(state, noise((256, 256)), 16, state["cv_embed"][[0, 5, 2]])
    assert (found - expected).abs().max() < 1e-5


def test_cameras_and_views_are_used_on_veri(tmp_path: Path) -> None:
    """The views that `veri:` reads from the keypoint files are those of the rows."""
    state, root, lines = published(256, rows=6), tmp_path / "VeRi", []
    import_checkpoint(save(state, tmp_path), tmp_path / "run", sie="camera+view", views=3)
    named = {"image_train": [(1, 1, 0)], "image_query": [(2, 1, 2)], "image_test": [(2, 2, 1), (3, 2, 0), (2, 2, None)]}
    for folder, rows in named.items():
        (root / folder).mkdir(parents=True)
        for nth, (identity, camera, view) in enumerate(rows):
            file = root / folder / f"{identity:04d}_c{camera:03d}_{nth:08d}_0.png"
            Image.fromarray(noise((256, 256), 8)[nth].permute(1, 2, 0).numpy()).save(file)
            lines += [f"VeRi/{folder}/{file.name} {'-1 ' * 40}{view}"] if view is not None else []
    (root / "keypoint_test.txt").write_text("\n".join(lines))
    model = clipreid.load(tmp_path / "run")
    found = score(clipreid.load_data(f"veri:{root}"), model, offsets=(0, 0)).gallery_features["concat"]
    table = state["cv_embed"]
    side = torch.stack([table[3 + 1], table[3:].mean(0), table[3]])  # in the order of file names; unknown: its camera
    expected = original(state, noise((256, 256), 8)[[0, 2, 1]], 16, side)
    assert (found - expected).abs().max() < 1e-5


def test_rows_that_are_read_alike_need_no_flag(tmp_path: Path) -> None:
    """One row: whatever it embeds, every image gets it."""
    state = published(rows=1)
    import_checkpoint(save(state, tmp_path), tmp_path / "run")
    expected = original(state, noise(), side=state["cv_embed"].expand(3, -1))
    assert (clipreid.load(tmp_path / "run").embed(noise(), cameras=[1, 5, -1]) - expected).abs().max() < 1e-5


def test_images_are_resized_bilinearly_as_a_whole(tmp_path: Path) -> None:
    state = published()
    import_checkpoint(save(state, tmp_path), tmp_path / "run")
    image = Image.fromarray(noise((90, 60), 1)[0].permute(1, 2, 0).numpy())
    resized = image.resize((128, 256), Image.Resampling.BILINEAR)
    crop = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(1, 256, 128, 3).permute(0, 3, 1, 2)
    assert (clipreid.load(tmp_path / "run").embed([image]) - original(state, crop)).abs().max() < 1e-5


def test_the_run_folder_holds_everything_and_needs_no_backbone(tmp_path: Path, capsys: Any) -> None:
    state, run = published(rows=4), tmp_path / "run"
    main(["import", str(save(state, tmp_path)), "--output", str(run), "--sie", "camera"])
    said = capsys.readouterr().out
    assert "ViT of 2 blocks, width 128, patch 16, stride 16; crops 256x128; 5 training identities" in said
    assert f"clipreid evaluate {run} --data NAME:ROOT --same-cameras" in said
    assert "side information of cameras 1 to 4: model.embed(images, cameras=[...]" in said
    files = {"config.json", "metrics.json", "heads.safetensors", "identities.safetensors", "image_tower.safetensors"}
    assert {file.name for file in run.iterdir()} == files
    assert json.loads((run / "metrics.json").read_text()) == {}
    config = json.loads((run / "config.json").read_text())
    assert (config["finished"], config["method"], config["stages"]) == (True, "clip_reid", ["stage2"])
    assert config["backbone"]["name"] == "imported"
    tensors, names = load_identities(run)
    assert names == ["0", "1", "2", "3", "4"]
    assert torch.equal(tensors["prompts"], state["prompt_learner.cls_ctx"])
    assert torch.equal(tensors["necks.projection.classifier.weight"], state["classifier_proj.weight"])
    heads = load_file(run / "heads.safetensors")
    assert torch.equal(heads["necks.final.norm.running_var"], state["bottleneck.running_var"])
    assert torch.equal(heads["necks.projection.norm.weight"], state["bottleneck_proj.weight"])
    (run / "image_tower.safetensors").unlink()
    with pytest.raises(UserError, match=r"image_tower.safetensors is missing"):
        clipreid.load(run)


def test_it_is_evaluated_like_any_run(tmp_path: Path, capsys: Any) -> None:
    from launching import paint_street

    crops, run = paint_street(tmp_path / "crops", train=1, test=3), tmp_path / "run"
    import_checkpoint(save(published(rows=4), tmp_path), run, sie="camera")
    data = f"folder:{crops}"
    main(["evaluate", str(run), "--data", data, "--same-cameras", "--report", str(tmp_path / "report")])
    assert "side information (cameras): the data set's are those of training" in capsys.readouterr().out
    split = clipreid.load_data(data).splits["query"]
    images, model = [split.image(i) for i in range(len(split))], clipreid.load(run)
    table, found = split.metadata(), []
    for cameras in (split.cameras.tolist(), None):
        features = model.embed(images, cameras=cameras)
        found.append(clipreid.evaluate(features, features, table, table, protocol="cross-camera").metrics)
    recorded = json.loads((run / "metrics.json").read_text())[data]
    assert recorded.keys() == {"stage2"}  # there is no backbone to compare with
    assert recorded["stage2"]["mAP"] == pytest.approx(found[0]["mAP"], abs=1e-6)
    assert (tmp_path / "report" / "ranked_lists.png").is_file()
    main(["evaluate", str(run), "--data", data])  # another data set, as far as anyone knows: the mean embedding
    assert "unknown, each gets the mean embedding" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())[data]["stage2"]["mAP"] == pytest.approx(found[1]["mAP"])
    assert found[0]["mAP"] != pytest.approx(found[1]["mAP"], abs=1e-4)


def test_without_prompts_and_classifiers(tmp_path: Path) -> None:
    """The baseline has no prompts, and some drop the classifiers."""
    state = {n: t for n, t in published().items() if not n.startswith(("prompt", "text", "classifier"))}
    import_checkpoint(save(state, tmp_path), tmp_path / "run")
    assert load_identities(tmp_path / "run") == ({}, [])
    assert (clipreid.load(tmp_path / "run").embed(noise()) - original(state, noise())).abs().max() < 1e-5


# Refusals ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[State], Any], dict[str, Any], str]] = {
    "rn50": (
        lambda s: s.update({"image_encoder.layer1.0.conv1.weight": torch.zeros(1)}),
        {},
        r"this is a ResNet \(RN50\); only ViT checkpoints can be imported",
    ),
    "another model": (
        lambda s: [s.update({f"base.{n}": s.pop(n)}) for n in list(s)],
        {},
        r"none of its weights is image_encoder.*, but such as base.bottleneck.bias.*not a checkpoint of CLIP-ReID",
    ),
    "unknown part": (
        lambda s: s.update({"adapter.weight": torch.zeros(1)}),
        {},
        r"weights that are not understood: adapter.weight",
    ),
    "no projection": (lambda s: s.pop("image_encoder.proj"), {}, r"image_encoder.proj is missing; this is not a"),
    "flat projection": (
        lambda s: s.update({"image_encoder.proj": torch.zeros(9)}),
        {},
        r"image_encoder.proj is \[9\]; this is not",
    ),
    "missing block weight": (
        lambda s: s.pop("image_encoder.transformer.resblocks.1.ln_2.bias"),
        {},
        r"weights missing: image.encoder.layers.1.layer_norm2.bias; is it a checkpoint of this model\?",
    ),
    "missing neck": (
        lambda s: s.pop("bottleneck_proj.running_var"),
        {},
        r"weights missing: necks.projection.norm.running_var",
    ),
    "neck of another shape": (
        lambda s: s.update({"bottleneck.weight": torch.ones(7)}),
        {},
        r"of another shape: necks.final.norm.weight",
    ),
    "one classifier": (
        lambda s: s.pop("classifier_proj.weight"),
        {},
        r"weights missing: necks.projection.classifier.weight",
    ),
    "odd width": (
        lambda s: s.update({"image_encoder.conv1.weight": torch.zeros(100, 3, 16, 16)}),
        {},
        r"a width of 100 is not a whole number of heads of 64",
    ),
    "odd positions": (
        lambda s: s.update({"image_encoder.positional_embedding": torch.zeros(132, WIDTH)}),
        {},
        r"its 131 positions are not those of crops of 256x128, 256x256: give --image-size HEIGHT WIDTH",
    ),
    "another size": (
        lambda s: None,
        {"image_size": (384, 128), "stride": 16},
        r"its 128 positions are not those of crops of 384x128 with stride 16",
    ),
    "no side information": (lambda s: None, {"sie": "view"}, r"--sie view: .* has no cv_embed"),
    "side unknown, cameras and views": (
        lambda s: s.update(cv_embed=torch.zeros(160, WIDTH)),
        {},
        r"(?s)\(cv_embed\) of 160 rows, .*--sie camera\+view --views 8 +20 cameras x 8 views, as those of VeRi\n"
        r"  --sie camera +160 cameras\n  --sie view +160 views\n  --sie camera\+view --views 2 +80 cameras x 2 views",
    ),
    "side unknown, views alone": (
        lambda s: s.update(cv_embed=torch.zeros(8, WIDTH)),
        {"views": 8},
        r"(?s)--sie camera +8 cameras, as those of DukeMTMC, Occluded-Duke\n  --sie view +8 views, as those of VeRi",
    ),
    "views unknown": (
        lambda s: s.update(cv_embed=torch.zeros(6, WIDTH)),
        {"sie": "camera+view"},
        r"cv_embed has 6 rows, and --views is not given, so that this does not tell the number of cameras",
    ),
    "views that do not divide": (
        lambda s: s.update(cv_embed=torch.zeros(6, WIDTH)),
        {"sie": "camera+view", "views": 4},
        r"cv_embed has 6 rows, and 4 views do not tell the number of cameras: give --views N",
    ),
    "views without need": (
        lambda s: s.update(cv_embed=torch.zeros(6, WIDTH)),
        {"sie": "camera", "views": 3},
        r"--views 3 does not go with --sie camera and the 6 rows",
    ),
    "side of another width": (
        lambda s: s.update(cv_embed=torch.zeros(6, 9)),
        {"sie": "camera"},
        r"weights of another shape: hooks.side.table",
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_checkpoints_that_are_refused(how: str, tmp_path: Path) -> None:
    change, flags, message = CHANGES[how]
    state = published()
    change(state)
    with pytest.raises(UserError, match=message):
        import_checkpoint(save(state, tmp_path), tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_files_that_are_no_state_dicts(tmp_path: Path) -> None:
    def refused(content: Any, message: str) -> None:
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(UserError, match=message):
            import_checkpoint(tmp_path / "file.pth", tmp_path / "run")

    refused([1, 2], "holds no state dict")
    refused({"epoch": 3}, "holds no state dict")
    refused({"image_encoder.proj": Trap(tmp_path / "executed")}, "nothing that could run code is loaded")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="there is no file"):
        import_checkpoint(tmp_path / "nowhere.pth", tmp_path / "run")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="is not a file of plain weights"):
        import_checkpoint(tmp_path / "text.pth", tmp_path / "run")
    with open(tmp_path / "file.pth", "wb") as file:
        pickle.dump(Trap(tmp_path / "executed"), file, protocol=2)
    with pytest.raises(UserError, match="is not a file of plain weights"):
        import_checkpoint(tmp_path / "file.pth", tmp_path / "run")
    assert not (tmp_path / "executed").exists()


def test_what_is_in_the_way_is_kept(tmp_path: Path) -> None:
    file = save(published(), tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for output, why in (
        (tmp_path / "run", "is in use: give a new or an empty folder"),
        (file, "is a file: give a folder"),
    ):
        with pytest.raises(UserError, match=why):
            import_checkpoint(file, output)
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_crops_that_cannot_be_told_apart_are_listed() -> None:
    here = Path("x.pth")
    with pytest.raises(UserError, match=r"fit several crops, choose one: --image-size 32 32 --stride 9; .*--stride 16"):
        find_geometry(4, 16, (32, 32), None, here)
    assert find_geometry(4, 16, (32, 32), 16, here) == ((32, 32), 16)
    assert find_geometry(128, 16, None, None, here) == ((256, 128), 16)
    with pytest.raises(UserError, match="are not those of crops of 256x128, 256x256 with stride 12"):
        find_geometry(128, 16, None, 12, here)


def test_a_damaged_shape_in_the_config_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_checkpoint(save(published(), tmp_path), run)
    for change in ({"width": "wide"}, {"sparkle": 1}):
        config = json.loads((run / "config.json").read_text())
        config["backbone"]["vision"] |= change
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"config.json: backbone settings, vision"):
            clipreid.load(run)


def test_it_takes_no_text(tmp_path: Path) -> None:
    model = import_checkpoint(save(published(), tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match=r"imported has no text tower"):
        model.embed_text(["a person with a red hat"])
