"""Runs sweeps: reads, checks, trains, selects and compares."""
