"""Compiles runs for TPU slices on a machine without TPUs.

gin/runs/precompile.gin runs `precompile.precompile`. Other wings do not import
this one, so that only such a run loads the compiler's tools.
"""
