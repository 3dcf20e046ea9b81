"""The parts, one by one, on the stand-in or smaller."""

import tests.import_order  # noqa: F401 (for what it does)
