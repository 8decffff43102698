"""Models that are ready to run: one file a runtime, and only that file imports it."""
