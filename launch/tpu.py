"""Runs a command on Cloud TPU: python launch/tpu.py --help.

This file puts the checkout on the path and runs launch/google_cloud/tpu.py.
"""

import pathlib
import runpy
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
runpy.run_module('launch.google_cloud.tpu', run_name='__main__', alter_sys=True)
