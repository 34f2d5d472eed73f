"""Cameras of the synthetic street: where they look, and what their optics do to an image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .figure import Figure, Pose, Style
from .occluders import cover
from .painter import paint
from .people import Person
from .scenes import CANVAS, scene

CROP = (128, 64)  # height, width of a finished crop in pixels
_H, _W = CANVAS

RGBf = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """One camera: a fixed scene, a dominant walking direction, colour response, sharpness and noise."""

    scene: str
    seed: int
    direction: float  # viewing angle that most people show to it, radians
    gains: RGBf  # per-channel gain
    gamma: float
    offset: float  # haze, 0..255
    blur: float  # Gaussian radius on the canvas, pixels
    noise: float  # standard deviation, 0..255
    zoom: float  # height of a standard person relative to the crop
    framing: float  # how carelessly crops are framed, pixels on the canvas
    weather: float = 0.0  # how much colour response and haze change from image to image; 0 = not at all
    style: Style = field(default_factory=Style)


def make_camera(
    scene: str, seed: int, harshness: float = 1.0, style: Style | None = None, weather: float = 0.0
) -> Camera:
    """A camera drawn from `seed`; `harshness` scales how far its colours stray from neutral."""
    rng = np.random.default_rng([7, seed])
    gains = 1 + harshness * rng.uniform(-0.2, 0.2, 3)
    return Camera(
        scene=scene,
        seed=seed,
        direction=float(rng.choice((0.0, np.pi, np.pi / 2, -np.pi / 2, 0.6, np.pi - 0.6))),
        gains=(float(gains[0]), float(gains[1]), float(gains[2])),
        gamma=float(np.exp(harshness * rng.uniform(-0.38, 0.38))),
        offset=float(harshness * rng.uniform(0, 26)),
        blur=float(rng.uniform(0.3, 1.0 + harshness)),
        noise=float(rng.uniform(3, 8 + 6 * harshness)),
        zoom=float(rng.uniform(0.8, 0.93)),
        framing=float(rng.uniform(3, 9)),
        weather=weather,
        style=style or Style(),
    )


def draw_pose(camera: Camera, rng: np.random.Generator) -> Pose:
    """How somebody happens to walk past: mostly in the camera's dominant direction."""
    angle = camera.direction + rng.normal(0, 0.35) if rng.random() < 0.6 else rng.uniform(-np.pi, np.pi)
    return Pose(
        angle=float(angle),
        stride=float(rng.uniform(0, 2 * np.pi)),
        swing=float(rng.uniform(0.12, 0.5)),
        x=float(_W / 2 + rng.normal(0, 0.6) * camera.framing),
        feet=float(_H * 0.955 + rng.normal(0, 0.5) * camera.framing),
        height=float(_H * camera.zoom * rng.uniform(0.96, 1.04)),
    )


def _expose(canvas: Image.Image, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Blur, halve, colour response, noise.  -> uint8 [128, 64, 3]"""
    if camera.blur > 0.4:
        canvas = canvas.filter(ImageFilter.BoxBlur(camera.blur))
    gains, gamma, haze = np.asarray(camera.gains), camera.gamma, camera.offset
    if camera.weather:  # the hour and the sky, on top of what is the camera's own
        gains = gains * (1 + camera.weather * rng.uniform(-0.14, 0.14, 3))
        gamma = gamma * float(np.exp(camera.weather * rng.uniform(-0.24, 0.24)))
        haze = haze + camera.weather * rng.uniform(0, 18)
    ramp = np.linspace(0, 1, 256) ** gamma * (255 - haze) + haze
    light = rng.uniform(0.92, 1.08)
    tables = [np.clip(ramp * gain * light, 0, 255).round().astype(int).tolist() for gain in gains]
    pixels = np.asarray(canvas.reduce(2).point(tables[0] + tables[1] + tables[2]), dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + camera.noise * grain + 0.5, 0, 255).astype(np.uint8)


def render(
    person: Person, camera: Camera, rng: np.random.Generator, pose: Pose | None = None, occlude: float = 0.0
) -> np.ndarray:
    """One crop of `person` as `camera` sees it.

    Args:
        person: who walks past.
        camera: whose scene and optics are used.
        rng: draws the pose (unless given), the framing, the light of the moment and the noise.
        pose: how the person stands; drawn by `draw_pose` when absent.
        occlude: share of the crop (0..0.7) hidden behind an object or another person.

    Returns:
        uint8 [128, 64, 3], RGB.
    """
    pose = pose or draw_pose(camera, rng)
    place = scene(camera.scene, camera.seed)
    x, y = int(rng.integers(place.width - _W)), int(rng.integers(place.height - _H))
    canvas = place.crop((x, y, x + _W, y + _H))
    r, g, b = (int(c * 0.6) for c in np.asarray(canvas)[_H - 6, _W // 2])
    ImageDraw.Draw(canvas).ellipse((pose.x - 34, pose.feet - 2, pose.x + 34, pose.feet + 12), fill=(r, g, b))
    paint(Figure(canvas, person, pose, camera.style))
    if occlude > 0:
        cover(canvas, rng, occlude, camera.style)
    return _expose(canvas, camera, rng)
