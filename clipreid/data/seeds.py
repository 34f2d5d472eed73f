"""One seed for every random draw, so that a run can be resumed anywhere without saving generator states."""

import hashlib


def seed_for(seed: int, epoch: int = 0, step: int = 0, process: int = 0) -> int:
    """Mixes (seed, epoch, step, process) into one seed, an int in [0, 2^63).

    Neighbouring arguments give unrelated seeds, and the result is the same on every machine and version,
    unlike `hash`. For `torch.Generator.manual_seed` and `numpy.random.default_rng` alike.
    """
    text = f"clipreid/{seed}/{epoch}/{step}/{process}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
