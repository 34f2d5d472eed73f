"""Draw a contact sheet of the street: one row a person, one column a camera; look-alikes stand together.

python -m clipreid.data.synthetic --sheet out.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torchvision.utils import save_image

from clipreid.data.synthetic.people import differences
from clipreid.data.synthetic.street import SETS, Shot, paint, person


@dataclass(frozen=True)
class Sheet:
    sheet: Path = Path("street.png")  # where to write the image
    people: int = 9  # rows
    first: int = 354  # number of the first person


def main(config: Sheet) -> None:
    home, new = "synthetic", "synthetic:new-cameras"
    crops = []
    for number in range(config.first, config.first + config.people):
        shots = [Shot(name, "gallery", number, camera, 0) for name in (home, new) for camera in range(6)]
        crops += [torch.from_numpy(paint(shot)[0]).permute(2, 0, 1) for shot in shots]  # [3, 128, 64]
        head = number - number % 3
        unlike = "a stranger"
        if head % 6 == 0:
            unlike = ", ".join(differences(person(head), person(number))) or "the head of a family"
        print(f"{number:04d}  {unlike:24s}  {paint(shots[0])[1]}")
    save_image(torch.stack(crops).float() / 255, config.sheet, nrow=12, padding=0)
    print(f"{config.sheet}: {config.people} people x 6 cameras of {home!r}, then 6 of {new!r}; sets: {', '.join(SETS)}")


if __name__ == "__main__":
    main(tyro.cli(Sheet, description=__doc__))
