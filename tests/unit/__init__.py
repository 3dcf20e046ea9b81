"""The parts, one by one, on the stand-in or smaller."""
