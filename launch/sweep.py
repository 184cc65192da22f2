"""Trains and compares the runs of a sweep: python launch/sweep.py --help.

This file puts the checkout on the path and runs launch/sweep/main.py.
"""

import pathlib
import runpy
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
runpy.run_module('launch.sweep.main', run_name='__main__', alter_sys=True)
