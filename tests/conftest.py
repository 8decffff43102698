"""For the whole suite: property tests draw the same examples everywhere, and none fails for taking long."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
