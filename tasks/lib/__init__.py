"""What task modules are made of: files of rows, features, metrics."""
