"""TFDS builders of data sets from their original files."""
