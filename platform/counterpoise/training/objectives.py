"""What a stage minimises, as weights on a batch's losses.

An objective sees the losses and groups of the *global* batch and answers with one weight per image. Each worker then
back-propagates the weighted losses of its own slice, and the gradients are summed over workers. One worker and many
therefore minimise the same thing, up to the order of summation.

An objective is a module, so that what it remembers between batches (its buffers) is checkpointed with the model.
Adding one is a class here and a line in :data:`OBJECTIVES`, with its name in :class:`counterpoise.config.Objective`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoise import config


class ERM(nn.Module):
    """The mean loss."""

    needs_groups = False

    def __init__(self, settings: config.Objective, groups: int) -> None:
        super().__init__()

    def forward(self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.full_like(losses, 1 / len(losses))


class GroupDRO(nn.Module):
    """Σ_g q_g · (mean loss of group g), where q follows the groups' losses by exponentiated gradient ascent.

    Before each step q_g ← q_g · exp(step_size · loss_g), then q is normalised; a group absent from the batch has loss
    0. Sagawa et al. 2020, Algorithm 1, without the generalisation adjustment.

    Args:
        settings: ``step_size`` is η_q of the paper.
        groups: How many groups the training images have; q starts uniform over these.
    """

    needs_groups = True
    q: Tensor

    def __init__(self, settings: config.Objective, groups: int) -> None:
        super().__init__()
        self.groups, self.step_size = groups, settings.step_size
        self.register_buffer("q", torch.full((groups,), 1 / groups))

    def forward(self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        member = nn.functional.one_hot(groups, self.groups).to(losses)  # products, not scatters: those vary on a GPU
        count = member.sum(0).clamp(min=1)
        self.q *= torch.exp(self.step_size * (losses @ member) / count)
        self.q /= self.q.sum()
        return member @ (self.q / count)


OBJECTIVES: dict[str, type[ERM | GroupDRO]] = {"erm": ERM, "group_dro": GroupDRO}


def make_objective(settings: config.Objective, groups: int) -> nn.Module:
    """The objective of that name, for training images of so many groups."""
    return OBJECTIVES[settings.name](settings, groups)
