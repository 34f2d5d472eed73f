"""A run as an ONNX graph: normalised pixels in, the feature for retrieval out."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipreid
from clipreid.disk import whole_folder
from clipreid.errors import UserError
from clipreid.export.merge import bake
from clipreid.hub.files import write_json
from clipreid.hub.plain import RGB_LINES
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel

GRAPH, PREPROCESSING = "model.onnx", "preprocessing.json"
INPUT, OUTPUT = "pixels", "features"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # between the graph and the model, on features of unit length


class Embedder(nn.Module):
    """`ReIDModel.embed` from the normalised pixels on."""

    def __init__(self, model: ReIDModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, D]
        return self.model.test_feature(self.model.features(pixels))


def check_onnx() -> None:
    """Raises `UserError` where the packages of the extra `onnx` are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--format onnx needs {", ".join(missing)}: pip install "clipreid[onnx]"')


def declaration(model: ReIDModel) -> dict[str, Any]:
    """What a program needs to know to feed the graph, as `preprocessing.json` and the graph's metadata have it.

    "python" is a function that makes any image that Pillow opens the RGB that is then resized: `rgb(image)`.
    """
    height, width = model.image_size
    return {
        "input": INPUT,
        "layout": "NCHW",
        "dtype": "float32",
        "channels": "RGB",
        "orientation": "turned upright by EXIF",
        "depth": "8 bits; of 16 bits the upper eight; floats are scaled to 8 bits before",
        "transparency": "laid on black",
        "python": "\n".join(["import numpy", "from PIL import Image, ImageOps", "", *RGB_LINES, ""]),
        "height": height,
        "width": width,
        "resize": "the whole image, aspect ratio not kept, antialiased",
        "interpolation": model.interpolation,
        "scale": 1 / 255,
        "mean": list(model.mean),
        "std": list(model.std),
        "output": OUTPUT,
        "D": sum(model.widths.values()),
        "parts": dict(model.widths),
        "normalised": "L2: compare by dot product",
        "strength": model.strength,
        "clipreid": clipreid.__version__,
    }


@torch.no_grad()
def export_onnx(model: ReIDModel, folder: Path) -> float:
    """Writes `model.onnx` and `preprocessing.json`, and compares the graph with the model in onnxruntime.

    The graph takes pixels [N, 3, H, W], float32 RGB, (value / 255 - mean) / std, any N, and gives features [N, D],
    float32 of unit length: tower with adapter, aggregation, linear maps and concatenation. Of side information it
    has the mean embedding, what unknown cameras get. Its metadata_props declare what `preprocessing.json` does.

    Args:
        model: any run, of any strength.
        folder: made if it is not there.

    Returns:
        The largest difference from the model over two batches of random pixels.

    Raises:
        UserError: the extra is missing, or torch cannot export this tower.
        RuntimeError: the graph's features differ by more than 1e-4: a defect.
    """
    check_onnx()
    needs_cosine(model.metric, "an ONNX graph")
    embedder, size = Embedder(bake(model)).eval(), model.image_size
    program = _trace(embedder, torch.randn(2, 3, *size), model.source[0].name)
    declared = declaration(model)
    for key, value in declared.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    with whole_folder(folder) as new:
        program.save(new / GRAPH)
        write_json(new / PREPROCESSING, declared)
        batches = [torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(n)) for n in (1, 5)]
        worst = max(float((run_onnx(new / GRAPH, batch) - embedder(batch)).abs().max()) for batch in batches)
        if not worst <= TOLERANCE:
            raise RuntimeError(f"the graph's features differ from the model's by {worst:.2g}; this is a defect")
    return worst


def run_onnx(file: Path, pixels: Tensor) -> Tensor:
    """Normalised pixels [N, 3, H, W] through a graph on the CPU: features [N, D]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])


def _trace(embedder: Embedder, pixels: Tensor, backbone: str) -> Any:
    """The graph with a free batch size N. Traced apart first, for torch's exporter would quietly fix N to the example's
    where the tower's code does not let it be free."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own making
            free = {INPUT: {0: torch.export.Dim("N", min=1)}}
            traced = torch.export.export(embedder, (pixels,), dynamic_shapes=free, strict=False)
            return torch.onnx.export(traced, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    except (torch._dynamo.exc.TorchDynamoException, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--format onnx: torch cannot export the tower of {backbone}: {reason}") from error
