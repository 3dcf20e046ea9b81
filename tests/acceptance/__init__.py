"""The requirement tests, one for each ID of the register."""
