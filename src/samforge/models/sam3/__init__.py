"""SAM 3: a checkpoint becomes parts."""
