"""The crop of a run against the patches of its backbone and the shape of its images (height / width)."""

from __future__ import annotations

from dataclasses import replace

from clipreid.backbones import Backbone, ImageBackbone, load_backbone
from clipreid.config import RunConfig
from clipreid.data.shape import fitting_crop, shape_note
from clipreid.errors import UserError

PATCH = 16  # for towers without patches, which take any size


def fit_crop(flags: RunConfig, shape: float | None) -> RunConfig:
    """The flags with the crop size that `--crop-shape data` asks for.

    Raises:
        UserError: a size is given as well, or the shape is not known.
    """
    if flags.crop_shape == "backbone":
        return flags
    if flags.image_size is not None:
        height, width = flags.image_size
        raise UserError(f"--image-size {height} {width} and --crop-shape data: give one of them")
    if shape is None:
        raise UserError("--crop-shape data: no training image can be opened; look at them with `clipreid data check`")
    plain = load_backbone(flags.backbone, positions=flags.positions)
    return replace(flags, image_size=fitting_crop(shape, plain.image_size, patch_of(plain)))


def patch_of(backbone: Backbone | ImageBackbone) -> int:
    """Side of a patch in pixels, `PATCH` where there are none."""
    return int(getattr(backbone.image, "patch_size", None) or getattr(backbone.image, "stride", None) or PATCH)


def check_whole_patches(size: tuple[int, int] | None, stride: int | None, backbone: Backbone | ImageBackbone) -> None:
    """Refuses, with `UserError`, a size (height, width) whose last rows or columns no patch would see.

    size: as given; None is the backbone's. With overlapping patches (stride) `about_crops` says so instead: published
    settings leave out a few pixels.
    """
    patch: int | None = getattr(backbone.image, "patch_size", None)
    if size is None or patch is None or stride is not None:
        return
    if lost := [side % patch for side in size if side % patch]:
        near = " ".join(str(max(1, round(side / patch)) * patch) for side in size)
        raise UserError(
            f"--image-size {size[0]} {size[1]}: the last {lost[0]} pixels would be seen by no patch of {patch} pixels; "
            f"give multiples of {patch}, such as --image-size {near}"
        )


def about_crops(backbone: Backbone | ImageBackbone, stride: int | None, shape: float | None) -> list[str]:
    """What the crop does to the training images: their shape, and what overlapping patches leave out."""
    size, patch = backbone.image_size, patch_of(backbone)
    squeezed = None if shape is None else shape_note(shape, size, patch)
    notes = [squeezed] if squeezed else []
    if stride is not None and any(lost := [(side - patch) % stride for side in size]):
        notes.append(
            f"with --stride {stride} the last {lost[0]} rows and {lost[1]} columns of a {size[0]}x{size[1]} crop are "
            "seen by no patch"
        )
    return notes
