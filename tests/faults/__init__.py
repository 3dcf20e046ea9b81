"""Planted faults, each with the check that must catch it."""

import tests.import_order  # noqa: F401 (for what it does)
