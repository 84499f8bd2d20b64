"""The scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# One thread and no bf16: what a test starts computes the same on every machine.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"}

TINY = (
    "--model", "mobilenetv2", "--image-size", "32x48", "--epochs", "2", "--batch-size", "4", "--workers", "0",
    "--amp", "off", "--device", "cpu", "--log-every", "1", "--lr", "0.001",
)  # fmt: skip


def run_script(name, *args, cwd=None, **options):
    """Run a script of the project as a user would; returns the finished process with its text output."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **options)
