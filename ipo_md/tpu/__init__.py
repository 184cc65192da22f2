"""Compiles runs for TPU slices on a machine without one."""
