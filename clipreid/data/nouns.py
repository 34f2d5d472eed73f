"""What to call the individuals of a data set in prompts, guessed from the words of its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

VEHICLES = "car truck bus motorcycle motorbike van vehicle suv sedan taxi lorry scooter"
PEOPLE = "person people pedestrian human"
ANIMALS = """
animal antelope bat bear beetle bird bison boar buffalo camel cat cheetah chimpanzee cow crab crocodile deer dog dolphin
donkey eagle elephant fish fox frog gazelle giraffe goat gorilla hedgehog hippo horse hyena ibex impala jaguar kangaroo
koala kudu leopard lemur lion lizard lynx macaque manatee manta monkey moose newt nyala ocelot orangutan otter owl
oyster panda panther penguin pig puma rabbit reindeer rhino salamander seal shark sheep snake squirrel tapir tiger toad
tortoise trout turtle walrus whale wildebeest wolf wolverine zebra
"""
PLURALS = {"people": "person", "cattle": "cow", "calves": "cow", "wolves": "wolf", "ponies": "horse"}
NOUNS = {word: word for word in ANIMALS.split()} | dict.fromkeys(VEHICLES.split(), "vehicle")
NOUNS |= dict.fromkeys(PEOPLE.split(), "person")
NOUNS |= {f"{word}{end}": noun for word, noun in tuple(NOUNS.items()) for end in ("s", "es")} | PLURALS


def guess_noun(identities: Iterable[str], spec: str = "") -> tuple[str, str] | None:
    """The noun, and what says so: a word in most of the identities, else one in the names of the last two folders.

    spec: the data name, such as folder:/data/antelopes/crops. None where nothing says anything.

    Examples:
        >>> guess_noun(["truck_0001", "car_0002"])
        ('vehicle', 'the identities')
        >>> guess_noun(["0001"], "folder:/data/antelopes/crops")
        ('antelope', "the folder 'antelopes'")
    """
    names = set(identities)
    counts = Counter(noun for name in names for noun in {NOUNS[word] for word in _words(name) if word in NOUNS})
    if counts and 2 * counts.most_common(1)[0][1] > len(names):
        return counts.most_common(1)[0][0], "the identities"
    folders = [part for part in re.split(r"[/\\]", spec.partition(":")[2]) if part]
    for folder in reversed(folders[-2:]):
        found = {NOUNS[word] for word in _words(folder) if word in NOUNS}
        if len(found) == 1:  # "cats-and-dogs" says nothing
            return found.pop(), f"the folder {folder!r}"
    return None


def noun_note(noun: str, source: str | None) -> str:
    """What is said of a noun that nobody gave; source: what says so, None where nothing does."""
    if source is None:
        return f"prompts say {noun!r}, for nothing says what the individuals are: say it, such as --noun antelope"
    return f"prompts say {noun!r} (guessed from {source}; change it with --noun WORD)"


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())
