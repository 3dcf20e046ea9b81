"""From calibration images to the tuned recipe's parameters: equalize, find ranges, round."""
