"""A damaged checkpoint is discarded: the stage is trained from its beginning and ends in the same bytes."""

from pathlib import Path

import pytest

from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.training import stages
from damage import DAMAGES
from toy_bias import make_experiment


class Killed(Exception):
    """The end of a fit after an epoch."""


def interrupted(experiment, views, validation):
    """Train two of three epochs; return the path of the checkpoint."""

    def stop(_, row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        stages.run(experiment, views, validation, stop)
    (digest,) = stages.digests(experiment, views, validation)
    return Path(experiment.store, "stages", digest, "checkpoint")


def resumed(experiment, views, validation):
    epochs = []
    fitted = stages.run(experiment, views, validation, lambda _, row: epochs.append(row["epoch"]))[0]
    return epochs, read(open_store(experiment.store), fitted.key)


def test_a_sound_checkpoint_is_resumed(store, views, validation, tmp_path):
    experiment = make_experiment(store, epochs=3)
    epochs, expected = resumed(experiment, views, validation)
    again = experiment.model_copy(update={"store": str(tmp_path / "again")})
    checkpoint = interrupted(again, views, validation)
    assert epochs == [1, 2, 3]
    assert resumed(again, views, validation) == ([3], expected)
    assert not checkpoint.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_discarded(store, views, validation, tmp_path, capsys, damage):
    experiment = make_experiment(store, epochs=3)
    expected = resumed(experiment, views, validation)
    again, other = (experiment.model_copy(update={"store": str(tmp_path / name)}) for name in ("again", "other"))
    checkpoint = interrupted(again, views, validation)
    another = interrupted(other.model_copy(update={"seed": 1}), views, validation).read_bytes()
    checkpoint.write_bytes(DAMAGES[damage](checkpoint.read_bytes(), another))
    capsys.readouterr()
    assert resumed(again, views, validation) == expected == ([1, 2, 3], expected[1])
    said = capsys.readouterr().err
    assert f"{checkpoint} is damaged and was discarded" in said


def test_weights_without_a_record_are_replaced(store, views, validation, tmp_path):
    """Those of a fit that was killed between the two; on a GPU they may have been others."""
    experiment = make_experiment(store, epochs=3)
    _, expected = resumed(experiment, views, validation)
    again = experiment.model_copy(update={"store": str(tmp_path / "again")})
    (digest,) = stages.digests(again, views, validation)
    open_store(again.store).create(f"stages/{digest}/weights.safetensors", b"others")
    assert resumed(again, views, validation) == ([1, 2, 3], expected)
