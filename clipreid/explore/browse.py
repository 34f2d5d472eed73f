"""For a notebook that is open: a slider over identities, and a map whose points show their crops under the pointer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipreid.reports.thumbnails import thumbnail


def browse(draw: Callable[[int], Any], count: int, label: str = "identity", start: int = 0) -> Any:
    """A slider 0 .. count - 1 above what `draw(number)` returns, a figure, say; without ipywidgets `draw(start)`."""
    try:
        from ipywidgets import IntSlider, interactive
    except ImportError:
        warnings.warn("no slider without ipywidgets: pip install ipywidgets", stacklevel=2)
        return draw(start)
    from IPython.display import display

    slider = IntSlider(value=start, min=0, max=count - 1, description=label, continuous_update=False)
    return interactive(lambda number: display(draw(number)), number=slider)


def plane(features: Tensor) -> Tensor:
    """[I, E] to the plane of most variance (two principal components), [I, 2]."""
    centred = features - features.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T


def hover_map(
    points: Tensor, images: Sequence[Image.Image], labels: Sequence[str], colours: Sequence[str], side: int = 96
) -> str:
    """A piece of HTML: a point for each identity, and its crop while the pointer (or the keyboard) is on it.

    No script and no network: what moves is CSS, and the crops are inside. `side` is their longer side in pixels.

    points: [I, 2], any scale.  colours: CSS colours, [I].
    """
    low, high = points.min(0).values, points.max(0).values
    places = ((points - low) / (high - low).clamp_min(1e-9)).tolist()
    dots = []
    for (x, y), image, label, colour in zip(places, images, labels, colours, strict=True):
        spot = f"left:{2 + 94 * x:.2f}%;top:{96 - 94 * y:.2f}%;background:{escape(colour)}"
        below = "low" if y > 0.5 else ""
        shown = f'<img src="{thumbnail(image, side)}" alt=""><b>{escape(label)}</b>'
        dots.append(f'<a tabindex="0" style="{spot}" class="{below}"><span>{shown}</span></a>')
    return f'<style>{CSS}</style><div class="clipreid-map">{"".join(dots)}</div>'


CSS = """
.clipreid-map { position: relative; height: 420px; max-width: 760px; border: 1px solid #d0d7df; background: #fff; }
.clipreid-map a { position: absolute; width: 10px; height: 10px; border-radius: 5px; border: 1px solid #24292f; }
.clipreid-map span { display: none; position: absolute; bottom: 14px; left: -28px; z-index: 2; background: #fff;
  border: 1px solid #24292f; padding: 3px; text-align: center; }
.clipreid-map .low span { bottom: auto; top: 14px; }
.clipreid-map a:hover span, .clipreid-map a:focus span { display: block; }
.clipreid-map img { display: block; margin: 0 auto; }
.clipreid-map b { font: 11px sans-serif; color: #24292f; white-space: nowrap; }
"""
