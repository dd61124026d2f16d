"""A process of the group that shares a fit's batches, and its exchanges with the others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def _nearest_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Worker:
    """One worker of ``size``; by default a single process.

    With ``size`` > 1 torch.distributed's default group must connect the workers.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=_nearest_device)

    def share(self, n: int) -> slice:
        """Return this worker's share of n items in order."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def put(self, images: np.ndarray) -> Tensor:
        """Return the array as a tensor on this worker's device."""
        tensor = torch.from_numpy(images)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def gather(self, own: Tensor, place: slice, n: int) -> Tensor:
        """Return all workers' slices put together, (n, …), the same on every worker."""
        if self.size == 1:
            return own
        whole = own.new_zeros((n, *own.shape[1:]))
        whole[place] = own
        dist.all_reduce(whole)
        return whole

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over workers, in one message."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average_buffers(self, model: nn.Module) -> None:
        """Average running statistics over workers: batch norm sees only a worker's slice of each batch."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size
