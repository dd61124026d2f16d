"""Several workers give what one gives, up to the order of summation."""

import multiprocessing

import pytest
import torch

from counterpoise.storage.uri import open_store
from counterpoise.training import models, stages
from counterpoise.training.engine.process_group import Worker
from toy_bias import fit_in_group, make_experiment

STAGES = [
    {"name": "erm", "data": ["real", "extra"], "start": "scratch"},
    {"name": "dro", "data": ["real", "extra"], "start": "scratch",
     "objective": {"risk": {"name": "group_dro", "step_size": 0.1}}, "groups": "cell_source",
     "sampling": "group_balanced"},
]  # fmt: skip


@pytest.mark.slow
def test_two_workers_end_where_one_does(store, views, validation, tmp_path):
    # 31 images a batch and 48 validation images: shares of unequal size
    plain = {"name": "sgd", "lr": 0.05}  # Adam would hide gradients that are off by a factor
    alone = make_experiment(
        store, STAGES, epochs=2, batch_size=31, augmentation=["flip", "crop"], optimizer=plain, select_by="last"
    )
    expected = stages.run(alone, views, validation)
    together = alone.model_copy(update={"store": (tmp_path / "together").as_posix()})
    tasks = stages.tasks(together, views, validation)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=fit_in_group, args=(rank, 2, (tmp_path / "meet").as_posix(), tasks)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for one, two in zip(expected, stages.run(together, views, validation), strict=True):
        assert two.reused
        assert one.digest == two.digest
        assert [row["loss"] for row in two.history] == pytest.approx([row["loss"] for row in one.history], abs=1e-5)
        first = models.load_weights(store, one.key)
        second = models.load_weights(open_store(together.store), two.key)
        assert (one.cost["num_workers"], two.cost["num_workers"], two.cost["devices"]) == (1, 2, 2.0)
        for name in first:
            torch.testing.assert_close(second[name], first[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("n", "size"), [(10, 3), (2, 4), (128, 1)])
def test_shares_are_even_and_cover_everything_once(n, size):
    shares = [range(n)[Worker(rank, size, torch.device("cpu")).share(n)] for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
