"""The door: ``counterpoise COMMAND CONFIG [key.path=value …]``.

What people read goes to standard output as tables, progress to standard error. With ``--json`` the last line of
standard output is one JSON object. A mistake of the user ends in a few lines and exit status 2. Nothing heavy is
imported until a command runs.
"""

from counterpoise.cli import steps, tools  # they register their commands
from counterpoise.cli.command import main

__all__ = ["main", "steps", "tools"]
