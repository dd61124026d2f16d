"""A process with all that it started, for tests that kill it."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time


def descendants(pid):
    """Command lines by process id of all that ``pid`` started, directly or not."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    family = {pid}
    for _ in range(10):
        family |= {int(row[0]) for row in rows if int(row[1]) in family}
    return {int(row[0]): row[2].strip() for row in rows if int(row[0]) in family - {pid}}


class Run:
    """A command in a process of its own, with a Ray cluster of its own."""

    def __init__(self, *command):
        self.folder = tempfile.mkdtemp(prefix="cp")  # short: Ray's sockets lie in it
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "RAY_TMPDIR": self.folder},
            stdout=subprocess.DEVNULL,
        )

    def wait_for(self, count, things):
        """Waits until ``things()`` are so many."""
        deadline = time.monotonic() + 240
        while len(things()) < count:
            assert self.process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill_driver(self):
        self.family = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()

    def wait_until_gone(self):
        """The cluster of a killed driver must end by itself."""
        deadline = time.monotonic() + 180
        while alive := [pid for pid, command in self.family.items() if _command(pid) == command]:
            assert time.monotonic() < deadline, f"left behind: {[self.family[pid] for pid in alive]}"
            time.sleep(0.5)

    def kill_all(self):
        """The driver and its cluster at once, as when a machine goes down."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self):
        self.kill_all()
        shutil.rmtree(self.folder, ignore_errors=True)


def _command(pid):
    """The command line of a process now; empty if it has ended."""
    done = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()
