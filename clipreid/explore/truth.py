"""What is true of the people of the synthetic street: a data set whose attributes are known without annotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipreid.data.synthetic.people import CAPTIONED, Person
from clipreid.data.synthetic.street import FAMILY, SETS, check_name, person
from clipreid.errors import UserError


def synthetic_people(identities: Sequence[str], name: str) -> list[Person]:
    """The individuals behind identity names such as "0012" of a named set such as "synthetic".

    Raises UserError for an unknown set, and for a name that is nobody's in it.
    """
    numbers = _numbers(identities, name)
    return [person(number, SETS[name].look_alikes) for number in numbers]


def true_attributes(people: Sequence[Person]) -> dict[str, np.ndarray]:
    """attribute -> value of each person, str [I]; "" where there is nothing to have it (the colour of no hat)."""
    seen = [who.attributes() for who in people]
    return {name: np.array([one.get(name, "") for one in seen]) for name in CAPTIONED}


def families(identities: Sequence[str], name: str) -> np.ndarray:
    """A number for each family of look-alikes, int [I]; who has no look-alikes is a family of one's own.

    Raises UserError as `synthetic_people` does.
    """
    numbers = np.array(_numbers(identities, name))
    family = numbers // FAMILY
    kin = SETS[name].look_alikes & (family % 2 == 0)
    return np.where(kin, family, -1 - numbers)


def _numbers(identities: Sequence[str], name: str) -> list[int]:
    check_name(name)
    known = {f"{n:04d}": n for part in SETS[name].parts.values() for n in range(part.first, part.first + part.count)}
    if strange := [identity for identity in identities if identity not in known]:
        raise UserError(f"nobody in {name} is called {strange[0]!r}: names go from {min(known)} to {max(known)}")
    return [known[identity] for identity in identities]
