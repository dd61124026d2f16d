"""Objectives against hand-worked cases and an independent GroupDRO."""

import math

import pytest
import torch

from counterpoise.config import Objective
from counterpoise.training.objectives import ERM, GroupDRO, make_objective


def test_erm_is_the_mean_loss():
    losses = torch.tensor([1.0, 2.0, 6.0])
    weights = make_objective(Objective(), 2)(losses, torch.tensor([0, 1, 1]))
    assert (weights * losses).sum() == pytest.approx(3.0)


def test_one_step_of_group_dro_by_hand():
    objective = make_objective(Objective(name="group_dro", step_size=0.5), 3)
    losses, groups = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 2])
    weights = objective(losses, groups)
    raised = [math.exp(0.5 * loss) for loss in (2.0, 0.0, 4.0)]  # the mean losses; group 1 is absent
    q = [value / sum(raised) for value in raised]
    assert objective.q.tolist() == pytest.approx(q)
    assert weights.tolist() == pytest.approx([q[0] / 2, q[0] / 2, q[2]])
    assert (weights * losses).sum().item() == pytest.approx(q[0] * 2 + q[2] * 4)


def test_group_dro_follows_a_plain_implementation_for_many_batches():
    generator = torch.Generator().manual_seed(0)
    objective, q = GroupDRO(Objective(name="group_dro"), 5), [0.2] * 5
    for _ in range(200):
        losses = torch.rand(16, generator=generator) * 3
        groups = torch.randint(0, 5, (16,), generator=generator)
        means = [losses[groups == g].mean().item() if (groups == g).any() else 0.0 for g in range(5)]
        q = [share * math.exp(0.01 * mean) for share, mean in zip(q, means, strict=True)]
        q = [share / sum(q) for share in q]
        total = (objective(losses, groups) * losses).sum().item()
        assert total == pytest.approx(sum(a * b for a, b in zip(q, means, strict=True)), rel=1e-4)


def test_group_dro_turns_to_the_group_with_the_largest_loss():
    objective = GroupDRO(Objective(name="group_dro", step_size=0.1), 2)
    for _ in range(100):
        objective(torch.tensor([0.1, 2.0]), torch.tensor([0, 1]))
    assert objective.q[1] > 0.99


def test_what_group_dro_remembers_is_in_its_state_and_erm_remembers_nothing():
    first, second = (GroupDRO(Objective(name="group_dro"), 2) for _ in range(2))
    first(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.q, second.q)
    assert ERM(Objective(), 2).state_dict() == {}
