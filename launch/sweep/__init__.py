"""Sweeps: specification, pool of runs, selection, table."""
