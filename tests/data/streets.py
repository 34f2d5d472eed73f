"""Who lives in the synthetic street: shared by its tests."""

from functools import cache

import numpy as np

from clipreid.data.synthetic import SETS, street
from clipreid.data.synthetic.people import Person

VIEWS = {"from the front": 0.0, "from the side": np.pi / 2, "from behind": np.pi}


@cache
def population() -> dict[tuple[str, str], dict[int, Person]]:
    """{(set, split): {number: person}} of every named set."""
    return {
        (name, split): {n: street.person(n, named.look_alikes) for n in range(part.first, part.first + part.count)}
        for name, named in SETS.items()
        for split, part in named.parts.items()
    }
