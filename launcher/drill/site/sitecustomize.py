"""Imported by every Python process of a drill as it starts: this folder is on its PYTHONPATH."""

import os

from launcher.drill.sabotage import arm

arm(os.environ)
