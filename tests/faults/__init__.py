"""Planted faults, each with the check that must catch it."""
