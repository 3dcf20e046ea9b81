"""How fast the suite is, against a plain script, against the runtimes and against the processor."""
