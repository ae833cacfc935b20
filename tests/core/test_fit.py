"""What a model would need: against sums done by hand, and in the right order."""
