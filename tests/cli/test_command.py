"""What all commands share."""

import subprocess
import sys

import pytest

CODE = """
import sys
class Cycle:
    def __init__(self): self.own = self
    def __del__(self): print("collected")
from counterpoise.cli import main
cycles = [Cycle()]
sys.argv = ["counterpoise", *sys.argv[1:]]
main()
"""


def test_an_exit_does_not_wait_for_the_garbage_collector():
    """It would look at every object of torch and MLflow once more: the operating system frees them all at once."""
    done = subprocess.run([sys.executable, "-c", CODE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("counterpoise")
    assert "collected" not in done.stdout


def test_an_exit_is_silent_where_triton_counts_its_objects():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", f"from triton._C import libtriton\n{CODE}", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
