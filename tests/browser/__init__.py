"""The report in a real browser; skipped, in words, where there is none."""
