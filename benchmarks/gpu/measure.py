"""Measures what a GPU is for, each figure as a ratio to a bare loop in the same process.

Needs neither Ray nor MLflow, neither weights nor a network: models have the real sizes and random weights, and what
the actors call is called here. Results are written after every case, so that a run that is cut off leaves what it has.

    benchmarks/gpu/run.sh --minutes 8 --out result
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from gpu.cases import Case, Measurement, Setting
from gpu.guidance import guidance
from gpu.models import device_name, folder
from gpu.result import write
from gpu.sampling import denoiser, independence, throughput
from gpu.scoring import scoring
from gpu.timing import Box, NoTime
from gpu.training import training

MEASUREMENTS = (
    Measurement("sampling", "sampler actor ÷ bare pipeline, images/s", 0.35, throughput),
    Measurement("guidance", "guided ÷ unguided seconds, every 5th step", 0.2, guidance),
    Measurement("independence", "an image of a batch against the same image alone", 0.05, independence),
    Measurement("training", "our loop ÷ bare loop on the device, steps/s", 0.25, training),
    Measurement("scoring", "our embedding ÷ bare open_clip loop, images/s", 0.05, scoring),
    Measurement("denoiser", "denoiser with an option ÷ without, images/s", 0.1, denoiser),
)
VERSIONS = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "numpy", "pyarrow", "pillow")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [measurement.name for measurement in MEASUREMENTS]
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything, imports aside [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of result.json and result.md [%(default)s]")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="measurements [all of them]")
    parser.add_argument("--tiny", action="store_true", help="tiny models, nothing compiled: does every case run?")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU on this machine; --tiny runs every case on the CPU with tiny models")
    return options


def main() -> int:
    """Run the measurements; return 1 if one failed."""
    options = arguments()
    torch._dynamo.config.disable = options.tiny
    result = run([measurement for measurement in MEASUREMENTS if measurement.name in options.only], options)
    return 1 if any("error" in row for row in result["rows"]) else 0


def run(measurements: Sequence[Measurement], options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and write the result after each case.

    Args:
        measurements: Each has its share of the time, and what those before it left.
        options: ``minutes``, ``out`` and ``tiny``.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = circumstances(options) | {"rows": []}
    started = deadline = time.monotonic()
    unit = 60 * options.minutes / sum(measurement.share for measurement in measurements)
    for measurement in measurements:
        deadline += unit * measurement.share
        with folder() as path, own_cache(path):
            for row in rows(measurement, Setting(path, options.tiny), Box(deadline)):
                result["rows"].append(row)
                result["seconds"] = round(time.monotonic() - started, 1)
                write(options.out, result)
    return result


@contextlib.contextmanager
def own_cache(path: Path) -> Iterator[None]:
    """Lets decoded images lie beside the models, to be removed with them."""
    before = os.environ.get("COUNTERPOISE_CACHE")
    os.environ["COUNTERPOISE_CACHE"] = str(path / "cache")
    try:
        yield
    finally:
        os.environ.pop("COUNTERPOISE_CACHE")
        if before is not None:
            os.environ["COUNTERPOISE_CACHE"] = before


def rows(measurement: Measurement, setting: Setting, box: Box) -> Iterator[dict[str, Any]]:
    """Yield the rows of a measurement; a case that fails, or has no time left, gives a row with the reason."""
    cases = measurement.cases(setting)
    while True:
        shared = {"measurement": measurement.name, "title": measurement.title}
        try:
            case: Case | None = next(cases, None)
        except Exception as error:  # what the cases share cannot be made: the measurement ends here
            yield shared | {"case": "set-up"} | failure(error)
            return
        if case is None:
            return
        shared["case"] = case.name
        print(f"{measurement.name}: {case.name} … ({max(box.left, 0):.0f} s left)", file=sys.stderr)
        began = time.monotonic()
        try:
            box.require(0)
            row = case.run(box)
        except NoTime as error:
            row = {"skipped": str(error)}
        except torch.OutOfMemoryError:
            row = {"skipped": "the device has not enough memory"}
        except Exception as error:
            row = failure(error)
        torch.cuda.empty_cache()
        yield shared | row | {"seconds": round(time.monotonic() - began, 2)}


def failure(error: Exception) -> dict[str, str]:
    """Print an exception's traceback and return the row that records it."""
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Return the hardware, driver and library versions that the figures depend on."""
    return {
        "device": device_name(),
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
        "commit": _commit(),
        "command": "benchmarks/gpu/run.sh " + " ".join(sys.argv[1:]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiny": options.tiny,
    }


def _commit() -> str | None:
    """Return the commit from git, or from the file that pack.sh wrote if the files came without their history."""
    here = Path(__file__).parent
    written = here / "packed" / "commit.txt"
    found = _output("git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40")
    return found or (written.read_text().strip() if written.is_file() else None)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
