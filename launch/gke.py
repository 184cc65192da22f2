"""Runs a command on a GKE cluster: python launch/gke.py --help.

This file puts the checkout on the path and runs launch/google_cloud/gke.py.
"""

import pathlib
import runpy
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
runpy.run_module('launch.google_cloud.gke', run_name='__main__', alter_sys=True)
