"""Runs commands on Cloud TPU and GKE. launch/tpu.py and launch/gke.py start it.

Nothing here imports JAX or anything else outside the standard library.
"""
