"""As a user goes: train, publish, load elsewhere, embed, search; and the same features without clipreid."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hub_server import Hub
from launching import command, paint_street

import clipreid
from clipreid.hub.plain import plain_lines
from clipreid.search import Gallery

WITHOUT = "import sys; sys.modules['clipreid'] = None\n"  # an import of it fails


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.slow
def test_from_crops_to_a_search_in_another_place(hub: Hub, tmp_path: Path) -> None:
    street = paint_street(tmp_path / "crops")
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    trainer = hub.env(home, "alice-write") | {"CLIPREID_CACHE": str(tmp_path / "c"), "ACCELERATE_USE_CPU": "true"}

    # train, and publish at the end
    flags = ["--data", f"folder:{street}", "--output", "run", "--prompt-epochs", 2, "--epochs", 3]
    flags += ["--identities-per-batch", 8, "--push", "alice/street", "--rate", 5e-3]
    train = command("clipreid_stage2.py", *flags)
    said = done(subprocess.run(train, env=trainer, cwd=tmp_path, capture_output=True, text=True))
    assert f"{hub.url}/alice/street" in said
    crops = sorted((street / "test").glob("*.jpg"))
    model = clipreid.load(tmp_path / "run")
    wanted = model.embed(crops).numpy()  # [N, D], by the run folder
    zero_shot = clipreid.load(tmp_path / "run", strength=0).embed(crops).numpy()
    assert np.abs(wanted - zero_shot).max() > 1e-2  # the training did something

    # load, embed, search in words and export in a fresh process with an empty cache
    embed = ["embed", "alice/street", street / "test", "--output", "gallery.parquet", "--pattern", "market1501"]
    search = ["search", "alice/street", "--gallery", "gallery.parquet", "--json"]
    export = ["export", "alice/street", "--format", "onnx", "--output", "onnx"]
    commands = [list(map(str, words)) for words in (embed, [*search, "--text", "a person"], export)]
    code = f"""
        import clipreid, contextlib, numpy, os
        from clipreid.cli import main
        os.chdir({str(tmp_path)!r})
        numpy.save("loaded.npy", clipreid.load("alice/street").embed({list(map(str, crops))}))
        embed, search, export = {commands}
        main(embed)
        with open("texts.json", "w") as file, contextlib.redirect_stdout(file):
            main(search)
        main(export)
    """
    done(hub.python(dedent(code), elsewhere, CLIPREID_CACHE=str(elsewhere / "pixels")))
    np.testing.assert_allclose(np.load(tmp_path / "loaded.npy"), wanted, atol=1e-6)
    texts = json.loads((tmp_path / "texts.json").read_text())
    assert len(texts["queries"][0]["results"]) == 10
    gallery = Gallery.open(tmp_path / "gallery.parquet")
    assert len(gallery) == len(crops)

    # search there, as typed
    env = hub.env(elsewhere) | {"CLIPREID_CACHE": str(elsewhere / "pixels")}
    line = [sys.executable, "-m", "clipreid", *search, "--image", str(crops[5]), "--top", str(len(crops))]
    found = json.loads(done(subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True)))
    hits = found["queries"][0]["results"]
    order = np.argsort(-(wanted @ wanted[5]), kind="stable")
    similarities = {Path(hit["path"]).name: hit["similarity"] for hit in hits}
    for i, crop in enumerate(crops):
        assert similarities[crop.name] == pytest.approx(wanted[i] @ wanted[5], abs=1e-6)
    assert Path(hits[0]["path"]).name == crops[order[0]].name == crops[5].name
    identity, camera = int(crops[5].name[:4]), int(crops[5].name[6])
    assert (hits[0]["identity"], hits[0]["camera"]) == (str(identity).zfill(4), camera)

    # with peft and transformers only
    base = shutil.copytree(Path(clipreid.__file__).parent / "weights" / "tiny-clip", tmp_path / "base")
    lines = plain_lines(model, str(base), "alice/street", str(crops[5]))
    keep = f"\nimport numpy; numpy.save({str(tmp_path / 'plain.npy')!r}, feature)"
    done(hub.python(WITHOUT + lines + keep, tmp_path / "third"))
    np.testing.assert_allclose(np.load(tmp_path / "plain.npy")[0], wanted[5], atol=1e-4)

    # with onnxruntime only
    code = f"""
        sys.modules["torch"] = None
        import json, numpy, onnxruntime
        from pathlib import Path
        from PIL import Image
        folder = Path({str(tmp_path / "onnx")!r})
        about = json.loads((folder / "preprocessing.json").read_text())
        size = about["width"], about["height"]
        kind = Image.Resampling[about["interpolation"].upper()]
        images = [Image.open(f).convert("RGB").resize(size, kind) for f in {list(map(str, crops))}]
        pixels = numpy.stack([numpy.asarray(p, dtype=numpy.float32) / 255 for p in images])
        pixels = (pixels - numpy.float32(about["mean"])) / numpy.float32(about["std"])
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        [features] = session.run([about["output"]], {{about["input"]: pixels.transpose(0, 3, 1, 2).copy()}})
        numpy.save({str(tmp_path / "onnx.npy")!r}, features)
    """
    done(hub.python(WITHOUT + dedent(code), tmp_path / "third"))
    np.testing.assert_allclose(np.load(tmp_path / "onnx.npy"), wanted, atol=1e-4)
