"""Run by `.ci/run` with PYTHONPATH at an installed wheel: does it hold everything it needs?"""

import sys
from pathlib import Path

import numpy as np

import clipreid
import clipreid.cli
from clipreid.data.synthetic.camera import make_camera, render
from clipreid.data.synthetic.people import draw_person

site = Path(sys.argv[1]).resolve()
package = Path(clipreid.__file__).resolve().parent
assert package == site / "clipreid", f"clipreid came from {package}, not from the wheel in {site}"
assert (package / "py.typed").is_file(), "py.typed is not in the wheel"
assert (site / "bin" / "clipreid").is_file(), "the wheel installs no clipreid command"

for name in ("tiny-clip", "tiny-siglip2"):
    backbone = clipreid.load_backbone(name)
    texts = backbone.encode_text(["a photo of a person wearing a red shirt", "a photo of a person in a blue shirt"])
    assert texts.shape == (2, backbone.text.embed_dim), texts.shape
    assert texts.isfinite().all()
    assert not texts[0].allclose(texts[1]), f"{name} gives every text the same feature"

image = render(draw_person(np.random.default_rng(1)), make_camera("wall", 0), np.random.default_rng(2))
assert image.dtype == np.uint8, image.dtype
assert image.ndim == 3, image.shape
assert image.std() > 10, "the rendered image is empty"
print(f"the wheel works: texts {tuple(texts.shape)}, image {image.shape}, from {package}")
