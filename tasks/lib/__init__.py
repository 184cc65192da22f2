"""Building blocks of task modules: files of rows, features, metrics."""
