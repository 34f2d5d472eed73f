"""What is true of the people of the synthetic street: a data set whose attributes are known without annotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipreid.data.synthetic.people import CAPTIONED, Person
from clipreid.data.synthetic.street import FAMILY, SETS, check_name, person


def synthetic_people(identities: Sequence[str], name: str = "synthetic") -> list[Person]:
    """The individuals behind identity names such as "0012".

    Raises UserError for an unknown set, ValueError for a name that is no number.
    """
    check_name(name)
    return [person(int(identity), SETS[name].look_alikes) for identity in identities]


def true_attributes(people: Sequence[Person]) -> dict[str, np.ndarray]:
    """attribute -> value of each person, str [I]; "" where there is nothing to have it (the colour of no hat)."""
    seen = [who.attributes() for who in people]
    return {name: np.array([one.get(name, "") for one in seen]) for name in CAPTIONED}


def families(identities: Sequence[str], name: str = "synthetic") -> np.ndarray:
    """A number for each family of look-alikes, int [I]; who has no look-alikes is a family of one's own."""
    check_name(name)
    numbers = np.array([int(identity) for identity in identities])
    family = numbers // FAMILY
    kin = SETS[name].look_alikes & (family % 2 == 0)
    return np.where(kin, family, -1 - numbers)
