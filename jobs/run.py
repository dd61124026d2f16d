"""``counterpoise run`` for ``ray job submit --working-dir . -- python jobs/run.py CONFIG [key.path=value …]``.

Inside a job Ray's address is in the environment, so that the job's cluster does the work.
"""

import sys

from counterpoise.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]], prog_name="counterpoise")
