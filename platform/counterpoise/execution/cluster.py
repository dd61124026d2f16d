"""Connection to Ray: an existing cluster, or a private one on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray

from counterpoise.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

# Read by the daemons and workers that Ray starts; values set by the user take precedence.
_PRIVATE_CLUSTER = {
    "OMP_NUM_THREADS": "1",  # as many threads as cores in every worker brings a small machine to a standstill
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it Ray prints a warning
}
_temporary: str | None = None


def connect() -> None:
    """Initialize Ray in this process; do nothing if it is initialized.

    Joins the cluster at ``RAY_ADDRESS`` (set inside ``ray job submit``). Without it, starts a cluster on this machine
    that ends with this process: no dashboard, no usage statistics, and a token, because Ray's ports listen on all
    interfaces.

    Raises:
        ConfigError: The cluster at RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address)
    else:
        _start()


def disconnect() -> None:
    """Leave the cluster, and end it if this process started it."""
    global _temporary
    ray.shutdown()
    if _temporary is not None:
        shutil.rmtree(_temporary, ignore_errors=True)
        _temporary = None


def map_tasks(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the function's results for all items, each computed as a Ray task on one CPU.

    An exception of the function is raised unchanged.
    """
    connect()
    task: Any = ray.remote(num_cpus=1, max_retries=2)(function)
    try:
        return ray.get([task.remote(item) for item in items])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None


def _join(address: str) -> None:
    if address.startswith(("http://", "https://")):
        remedy = "give this address as RAY_API_SERVER_ADDRESS, to `ray job submit`, and unset RAY_ADDRESS"
        raise ConfigError("this is the address of Ray's dashboard", where="RAY_ADDRESS", found=address, remedy=remedy)
    try:
        _check_reachable(address)
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        found = f"{address}: {str(error).strip().splitlines()[0]}"
        remedy = "start the cluster, correct the address, or unset RAY_ADDRESS to use this machine"
        raise ConfigError("the Ray cluster does not answer", where="RAY_ADDRESS", found=found, remedy=remedy) from error


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at the address: Ray itself would try for more than five minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _start() -> None:
    global _temporary
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    _sweep(Path(parent))
    _temporary = tempfile.mkdtemp(prefix=f"cpray-{os.getpid()}-", dir=parent)  # short: it holds sockets
    atexit.register(disconnect)
    with _environment():
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=_temporary,
        )


def _sweep(parent: Path) -> None:
    """Remove the folders of clusters whose process was killed."""
    for folder in parent.glob("cpray-*-*"):
        try:
            os.kill(int(folder.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # another user's, or another program's


@contextmanager
def _environment() -> Iterator[None]:
    """Set the environment that the daemons inherit. ``PYTHONWARNINGS=error`` of the caller must not apply to them."""
    settings = {name: value for name, value in _PRIVATE_CLUSTER.items() if name not in os.environ}
    if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        # Ray turns authentication on for a new cluster and by default writes the token into the home directory,
        # readable by all. This one stays in the environment: this process needs it as long as the cluster.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    strict = os.environ.pop("PYTHONWARNINGS", None)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        if strict is not None:
            os.environ["PYTHONWARNINGS"] = strict
