"""Risks: the weight of each image's loss in a batch; a stage minimises the weighted sum.

A risk takes the losses and groups of the *global* batch, detached, and returns one weight for each image. Each worker
then back-propagates the weighted losses of its own slice, and the gradients are summed over workers. One worker and
many therefore minimise the same objective, up to the order of summation.

A risk is a module, so that its state between batches (its buffers) is checkpointed with the model. A new risk is a
class in this file with a line in :data:`RISKS`, and one with its settings in :mod:`counterpoise.config.objectives`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoise.config import objectives


class Risk(nn.Module):
    """The mean loss, and the base of all risks. Arguments: see :func:`make_risk`.

    Attributes:
        needs_groups: True if the group of every image must be known.
    """

    needs_groups = False

    def __init__(self, settings: objectives.Risk, group_sizes: Int[Tensor, " groups"]) -> None:
        super().__init__()

    def forward(
        self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"], reference: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the weight of each image of the batch, at least 0, without a gradient.

        Args:
            losses: Losses, at least 0, detached.
            groups: Groups, numbered from 0.
            reference: Losses of the reference model on the same images, at least 0, if there is one.
        """
        return torch.full_like(losses, 1 / len(losses))


class GroupDRO(Risk):
    """Σ_g q_g · (mean loss of group g), where q follows the groups' losses by exponentiated gradient ascent.

    Before each step q_g ← q_g · exp(η · (loss_g + C / √n_g)), then q is normalised: Sagawa et al. 2020, algorithm 1,
    with the adjustment of §3.3, by which small groups, whose losses generalise less, weigh more. η is
    ``step_size``, C is ``adjustment``. As in the authors' code, a group absent from the batch has loss 0 (and its
    adjustment), and n_g counts the images of the training set, however they are sampled. q starts uniform over the
    groups that have images.
    """

    needs_groups = True
    q: Tensor
    adjustment: Tensor

    def __init__(self, settings: objectives.GroupDro, group_sizes: Int[Tensor, " groups"]) -> None:
        super().__init__(settings, group_sizes)
        self.step_size = settings.step_size
        present = (group_sizes > 0).float()
        self.register_buffer("q", present / present.sum())
        self.register_buffer("adjustment", settings.adjustment / group_sizes.clamp(min=1).sqrt(), persistent=False)

    def forward(
        self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"], reference: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Update q and return q_g / (number of images of g in the batch) for each image of a group g."""
        member = nn.functional.one_hot(groups, len(self.q)).to(losses)  # products, not scatters: those vary on a GPU
        count = member.sum(0).clamp(min=1)
        means = (losses[:, None] * member).sum(0) / count
        # through logarithms, as exp(η · loss) overflows for losses that a bad start can have
        self.q.copy_((self.q.log() + self.step_size * (means + self.adjustment)).softmax(0))
        return (member * (self.q / count)).sum(1)


class CVaR(Risk):
    """The mean over the worst share α of the batch: Levy et al. 2020, with a batch in place of the distribution.

    The αn images of the largest losses have the weight 1 / (αn); if αn is not whole, the last of them has the remainder
    to a sum of 1. Among equal losses the earlier in the batch goes first. α is ``worst_share``.
    """

    def __init__(self, settings: objectives.CvarDro, group_sizes: Int[Tensor, " groups"]) -> None:
        super().__init__(settings, group_sizes)
        self.worst_share = settings.worst_share

    def forward(
        self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"], reference: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return 1 / (αn) for the αn largest losses, otherwise 0."""
        rank = losses.argsort(descending=True, stable=True).argsort()
        counted = self.worst_share * len(losses)
        return (counted - rank.to(losses)).clamp(0, 1) / counted


class RelativeDifficulty(Risk):
    """The mean of W · loss with W = reference / (reference + loss): Nam et al. 2020 (LfF), §3.2.

    W is near 1 for an image that the biased model finds hard and this one does not, ½ where they agree. LfF trains the
    two models together, and computes W from running means of each image's two losses, divided by their class's largest.
    This is a variant: the biased model is trained before, in a separate stage (with generalised cross-entropy, for
    LfF's), and W is computed from the current losses.
    """

    def forward(
        self, losses: Float[Tensor, " n"], groups: Int[Tensor, " n"], reference: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return W / n."""
        assert reference is not None, "relative difficulty needs a reference"
        both = (reference + losses).clamp(min=torch.finfo(losses.dtype).tiny)  # both can be 0
        return reference / both / len(losses)


RISKS: dict[str, type[Risk]] = {
    "mean": Risk,
    "group_dro": GroupDRO,
    "cvar_dro": CVaR,
    "relative_difficulty": RelativeDifficulty,
}


def make_risk(settings: objectives.Risk, group_sizes: Int[Tensor, " groups"]) -> Risk:
    """Return the risk that the settings name.

    Args:
        settings: Name and parameters of the risk.
        group_sizes: Number of training images of each group; groups are numbered from 0.
    """
    return RISKS[settings.name](settings, group_sizes)
