"""Where the time of a run went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

OTHER = "other"  # imports, the model, saving


class Clock:
    """Seconds by part of a run; they add up to all of its time, for what belongs to no part is `other`.

    began: when the first second was, by `time.monotonic`; None: now.
    """

    def __init__(self, began: float | None = None) -> None:
        self.since = time.monotonic() if began is None else began
        self.part, self.spent = OTHER, dict[str, float]()

    def _turn(self, part: str) -> str:
        """From now on it is `part`; returns what it was."""
        now, before = time.monotonic(), self.part
        self.spent[before] = self.spent.get(before, 0.0) + now - self.since
        self.since, self.part = now, part
        return before

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """The time in this block belongs to `part`, and to nothing around it."""
        before = self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of every part so far, in their order, `other` last."""
        self._turn(self.part)
        return {part: self.spent[part] for part in sorted(self.spent, key=lambda part: part == OTHER)}

    def told(self) -> str:
        """The same as a sentence: all seconds, and the share of each part."""
        spent = self.seconds()
        whole = sum(spent.values())
        shares = (f"{part} {seconds:.1f} s ({seconds / max(whole, 1e-9):.0%})" for part, seconds in spent.items())
        return f"{whole:.1f} s: {', '.join(shares)}"
