"""Risks against hand-worked cases, plain implementations and a dual form."""

import math

import pytest
import torch

from counterpoise.config import Objective
from counterpoise.config.schema import variants_at
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.objectives.risks import RISKS, make_risk


def make(name, sizes=(10, 10), **settings):
    return make_risk(Objective(risk={"name": name, **settings}).risk, torch.tensor(sizes))


def draw(n=16, groups=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(n, generator=random), torch.randint(0, groups, (n,), generator=random)


def test_there_is_a_class_for_every_name_that_the_config_knows():
    assert list(RISKS) == list(variants_at(("stages", 0, "objective", "risk")).kinds)


def test_the_mean_is_the_mean():
    losses, groups = draw()
    assert (make("mean")(losses, groups) * losses).sum().item() == pytest.approx(losses.mean().item())


# -- group_dro ---------------------------------------------------------------------------------------------------------


def test_one_step_of_group_dro_by_hand():
    risk = make("group_dro", sizes=(9, 9, 9), step_size=0.5)
    losses, groups = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 2])
    weights = risk(losses, groups)
    raised = [math.exp(0.5 * loss) for loss in (2.0, 0.0, 4.0)]  # the mean losses; group 1 is absent
    q = [value / sum(raised) for value in raised]
    assert risk.q.tolist() == pytest.approx(q)
    assert weights.tolist() == pytest.approx([q[0] / 2, q[0] / 2, q[2]])
    assert (weights * losses).sum().item() == pytest.approx(q[0] * 2 + q[2] * 4)


@pytest.mark.parametrize("adjustment", [0.0, 1.5])
def test_group_dro_follows_a_plain_implementation_for_many_batches(adjustment):
    sizes = [4, 9, 25, 100, 400]
    risk, q = make("group_dro", sizes=sizes, adjustment=adjustment), [0.2] * 5
    for seed in range(200):
        losses, groups = draw(groups=5, seed=seed)
        means = [losses[groups == g].mean().item() if (groups == g).any() else 0.0 for g in range(5)]
        raised = [mean + adjustment / math.sqrt(size) for mean, size in zip(means, sizes, strict=True)]
        q = [share * math.exp(0.01 * value) for share, value in zip(q, raised, strict=True)]
        q = [share / sum(q) for share in q]
        total = (risk(losses, groups) * losses).sum().item()
        assert total == pytest.approx(sum(a * b for a, b in zip(q, means, strict=True)), rel=1e-4)
    assert risk.q.tolist() == pytest.approx(q, rel=1e-4)


def test_group_dro_turns_to_the_group_with_the_largest_loss():
    risk = make("group_dro", step_size=0.1)
    for _ in range(100):
        risk(torch.tensor([0.1, 2.0]), torch.tensor([0, 1]))
    assert risk.q[1] > 0.99


def test_with_equal_losses_the_adjustment_turns_to_the_smaller_group():
    risk = make("group_dro", sizes=(4, 400), step_size=1, adjustment=2)
    risk(torch.ones(2), torch.tensor([0, 1]))
    assert (risk.q[0] / risk.q[1]).item() == pytest.approx(math.exp(2 / 2 - 2 / 20))


def test_losses_that_a_bad_start_can_have_do_not_break_group_dro():
    risk = make("group_dro", step_size=1)
    weights = risk(torch.tensor([1e4, 1.0]), torch.tensor([0, 1]))
    assert weights.tolist() == [1, 0]
    assert risk(torch.tensor([1.0, 1e6]), torch.tensor([0, 1])).isfinite().all()


def test_a_group_without_images_has_no_part_in_group_dro():
    risk, plain = make("group_dro", sizes=(5, 0, 20), adjustment=1), make("group_dro", sizes=(5, 20), adjustment=1)
    losses, groups = draw()
    torch.testing.assert_close(risk(losses, 2 * groups), plain(losses, groups))
    assert risk.q[1] == 0


def test_what_group_dro_remembers_is_in_its_state_and_the_others_remember_nothing():
    first, second = make("group_dro"), make("group_dro")
    first(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.q, second.q)
    assert set(first.state_dict()) == {"q"}
    assert all(make(name).state_dict() == {} for name in RISKS if name != "group_dro")


# -- cvar_dro ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, [0, 0.5, 0, 0.5]),
        (0.6, [0, 1 / 2.4, 0.4 / 2.4, 1 / 2.4]),  # the boundary image in part
        (0.25, [0, 0, 0, 1]),
        (0.01, [0, 0, 0, 1]),  # less than one image is one image
        (1.0, [0.25] * 4),
    ],
)
def test_cvar_by_hand(share, expected):
    weights = make("cvar_dro", worst_share=share)(torch.tensor([1.0, 6.0, 2.0, 7.0]), torch.zeros(4, dtype=torch.long))
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.03, 0.2, 1 / 3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("n", [1, 7, 30])
def test_cvar_is_the_dual_forms(share, n):
    """Rockafellar & Uryasev 2000: the least of η + mean((loss - η)₊) / α, which is reached at some loss."""
    losses, groups = draw(n)
    values = losses.double()
    if share * n >= 1:
        expected = min((eta + (values - eta).clamp(min=0).mean() / share).item() for eta in values)
    else:
        expected = values.max().item()
    weights = make("cvar_dro", worst_share=share)(losses, groups)
    assert (weights * losses).sum().item() == pytest.approx(expected, rel=1e-5)
    assert weights.sum().item() == pytest.approx(1)


def test_of_equal_losses_the_earlier_ones_count():
    weights = make("cvar_dro", worst_share=0.5)(torch.tensor([2.0, 1, 2, 2, 2, 0]), torch.zeros(6, dtype=torch.long))
    assert weights.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3, 0, 0])
    many = make("cvar_dro", worst_share=0.5)(torch.ones(1000), torch.zeros(1000, dtype=torch.long))
    assert many.tolist() == pytest.approx([1 / 500] * 500 + [0] * 500)


# -- relative_difficulty -----------------------------------------------------------------------------------------------


def test_relative_difficulty_by_hand():
    losses, reference = torch.tensor([1.0, 2.0, 0.5, 0.0]), torch.tensor([3.0, 2.0, 0.0, 4.0])
    weights = make("relative_difficulty")(losses, torch.zeros(4, dtype=torch.long), reference)
    assert weights.tolist() == pytest.approx([0.75 / 4, 0.5 / 4, 0, 1 / 4])


def test_images_that_neither_model_finds_hard_have_finite_weights():
    nothing = torch.zeros(3)
    assert make("relative_difficulty")(nothing, torch.zeros(3, dtype=torch.long), nothing).isfinite().all()


# -- all risks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RISKS)
def test_gradients_summed_over_workers_are_those_of_one(name):
    """Weights come from the whole batch, so each worker's slice of it is all that a worker needs besides."""
    _, groups = draw(11)
    slope = torch.linspace(-1, 2, 11)
    reference = torch.rand(11, generator=torch.Generator().manual_seed(5))

    def gradient(workers):
        risk, steepness, total = make(name), torch.tensor(0.7, requires_grad=True), 0
        for _ in range(3):  # what it remembers has its part
            weights = risk((slope * steepness).square().detach(), groups, reference)
            assert not weights.requires_grad
            assert (weights >= 0).all()
        for rank in range(workers):
            own = Worker(rank, workers, torch.device("cpu")).share(11)
            losses = (slope[own] * steepness).square()
            total += torch.autograd.grad((weights[own] * losses).sum(), steepness)[0].item()
        return total

    assert gradient(3) == pytest.approx(gradient(1))
    assert gradient(1) != 0


@pytest.mark.parametrize("name", RISKS)
def test_the_order_of_a_batch_does_not_matter(name):
    losses, groups = draw(20)
    reference, order = losses.flip(0), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    straight = make(name)(losses, groups, reference)
    mixed = make(name)(losses[order], groups[order], reference[order])
    torch.testing.assert_close(mixed, straight[order])


def test_only_group_dro_asks_for_groups():
    assert [name for name, kind in RISKS.items() if kind.needs_groups] == ["group_dro"]
