"""Command-line interface: ``counterpoise COMMAND CONFIG [key.path=value …]``.

Tables go to standard output, progress to standard error. With ``--json`` the last line of standard output is one JSON
object. A user error is reported in a few lines and ends with exit status 2. Heavy libraries are imported only when a
command runs.
"""

from counterpoise.cli import steps, tools  # importing them registers their commands
from counterpoise.cli.command import main

__all__ = ["main", "steps", "tools"]
