"""Commands in the process of a test."""

import pytest

from clipreid.training import harness


@pytest.fixture(autouse=True)
def _one_thread_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where --threads is not given a command takes all cores: several tests at once would fight for them."""
    given = harness.set_threads
    monkeypatch.setattr(harness, "set_threads", lambda threads: given(1 if threads is None else threads))
