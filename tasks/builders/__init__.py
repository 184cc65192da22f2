"""TFDS builders of the data sets with original files."""
