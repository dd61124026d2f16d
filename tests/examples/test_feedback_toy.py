"""The paper's two-dimensional example says what it says there: minority modes gain mass under entropy guidance."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))


@pytest.mark.slow
def test_minority_modes_gain_mass(tmp_path):
    import feedback_toy

    found = feedback_toy.run(steps=2000)
    shares = {name: found[name][1] for name in ("data", "plain", "guided")}
    assert shares["plain"] == pytest.approx(shares["data"], abs=0.04)
    assert shares["guided"] > 1.4 * shares["plain"]
    feedback_toy.plot(found, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").stat().st_size > 10_000
