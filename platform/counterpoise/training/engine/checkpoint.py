"""Checkpoint of a fit: one disposable in the store, replaced after every epoch, with its SHA-256 in front."""

from __future__ import annotations

import io
from typing import Any

import torch

from counterpoise.storage.records import read_disposable, sha256
from counterpoise.training.engine.task import Fit

_HEX = 64  # characters of a SHA-256


def save_checkpoint(task: Fit, state: dict[str, Any]) -> None:
    """Store a fit's state between two epochs."""
    buffer = io.BytesIO()
    torch.save({"digest": task.digest, **state}, buffer)
    content = buffer.getvalue()
    task.store.replace(task.checkpoint_key, sha256(content).encode() + content)


def load_checkpoint(task: Fit, device: torch.device) -> dict[str, Any] | None:
    """Return the state after the last complete epoch; None without a checkpoint, or if it was damaged and discarded.

    All workers of a group read the same one, because a group starts only after the last one has ended.
    """

    def parse(data: bytes) -> dict[str, Any]:
        stored, content = data[:_HEX], data[_HEX:]
        if sha256(content).encode() != stored:
            raise ValueError("the content does not match its SHA-256")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if state["digest"] != task.digest:
            raise ValueError(f"it is that of another stage, {state['digest']}")
        return state

    return read_disposable(task.store, task.checkpoint_key, parse, f"the checkpoint of {task.note()}")
