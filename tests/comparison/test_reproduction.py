"""Reproductions: the shipped files are whole, claims are judged over seeds, and one runs end to end."""

import json

import pytest

from counterpoise.comparison import reproduction
from counterpoise.comparison.reproduction import Claim, judge
from counterpoise.errors import ConfigError


@pytest.mark.parametrize("name", list(reproduction.titles()))
def test_a_shipped_reproduction_is_whole(name):
    where = ("data.root=here",) if name.endswith("_fashion") else ()
    spec, load = reproduction.read(name, where)
    assert spec.title
    assert spec.paper
    assert spec.setup
    assert spec.theirs
    for changes in spec.settings.values():
        experiments = load(changes)
        assert {experiment.name for experiment in experiments} == {name}
        assert len({experiment.seed for experiment in experiments}) >= 5
        methods = {experiment.method for experiment in experiments}
        assert {method for claim in spec.claims for method in (claim.better, claim.than)} <= methods


def rows(**by_method):
    return [
        {"method": method, "seed": seed, "setting": setting, "accuracy": value, "group_std": value}
        for method, settings in by_method.items()
        for setting, values in settings.items()
        for seed, value in enumerate(values)
    ]


def test_a_claim_holds_is_reversed_or_is_not_shown():
    found = rows(a={"x": [0.8, 0.82, 0.81]}, b={"x": [0.7, 0.71, 0.72]}, c={"x": [0.7, 0.95, 0.81]})
    claim = Claim(better="a", than="b", metric="accuracy")
    held = judge(claim, found)
    assert (held.verdict, held.difference) == ("holds", pytest.approx(0.1))
    assert judge(claim.model_copy(update={"better": "b", "than": "a"}), found).verdict == "reversed"
    assert judge(claim.model_copy(update={"than": "c"}), found).verdict == "not shown"
    assert judge(claim.model_copy(update={"metric": "group_std"}), found).verdict == "reversed"  # less is better
    alone = judge(claim, [row for row in found if row["seed"] == 0])
    assert (alone.verdict, alone.interval) == ("not shown", None)


def test_a_claim_on_an_undefined_metric_is_not_shown():
    found = [{"method": method, "seed": seed, "accuracy": 0.5} for method in "ab" for seed in range(3)]
    judged = judge(Claim(better="a", than="b", metric="worst_group_accuracy"), found)
    assert (judged.difference, judged.interval, judged.verdict) == (None, None, "not shown")
    assert "| a is ahead of b in worst group | – | **not shown** |" in reproduction._claims([judged])


def test_a_claim_on_an_unheard_of_metric_is_told(tmp_path):
    body = "extends: experiments/demo\nname: bad\nreproduction: {title: t, paper: p, claims: [%s]}\n"
    (tmp_path / "bad.yaml").write_text(body % "{better: ffr, than: usb, metric: worst_group}")
    with pytest.raises(ConfigError, match=r"reproduction\.claims\.0[\s\S]*did you mean 'worst_group_accuracy'"):
        reproduction.reproduce(str(tmp_path / "bad.yaml"), [], tmp_path)


def test_settings_are_averaged_within_a_seed():
    found = rows(a={"x": [0.8, 0.6], "y": [0.6, 0.81]}, b={"x": [0.7, 0.5], "y": [0.5, 0.7]})
    judged = judge(Claim(better="a", than="b", metric="accuracy"), found)
    assert judged.difference == pytest.approx(0.1025)
    assert judged.interval == (pytest.approx(0.1025 - 0.0025 * 12.706, abs=1e-4), pytest.approx(0.1343, abs=1e-4))


@pytest.mark.usefixtures("ray_cluster")
def test_a_reproduction_runs_and_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "small.yaml"
    file.write_text(
        """
extends: ../configs/experiments/demo.yaml
name: small
methods: [erm, balanced_softmax]
seeds: [0, 1]
data: {per_cell: {train: 20, validation: 10, test: 10}}
training: {epochs: 1}
tracking: {enabled: false}
reproduction:
  title: A small one
  paper: nobody
  settings: {mild: [data.imbalance.rate=0.6], strong: [data.imbalance.rate=0.9]}
  claims: [{better: balanced_softmax, than: erm, metric: worst_group_accuracy}]
  theirs: None.
""".replace("../configs/experiments/demo.yaml", "experiments/demo")
    )
    done = reproduction.reproduce(str(file), [f"store={tmp_path / 'store'}"], tmp_path / "out")
    assert len(done["rows"]) == 2 * 2 * 2
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "small.md").read_text()
    assert "# A small one" in text
    assert "| mild | strong |" in text.replace("method ", "")
    assert "2 seeds" in text
    assert json.loads((tmp_path / "out" / "small.json").read_text())["rows"] == done["rows"]
    again = reproduction.reproduce(str(file), [f"store={tmp_path / 'store'}"], tmp_path / "out")
    assert (again["rows"], again["seconds"]) == (done["rows"], done["seconds"])


def test_a_claim_about_nobody_and_a_wrong_section_are_told(tmp_path):
    file = tmp_path / "bad.yaml"
    body = "extends: experiments/demo\nname: bad\nreproduction: {title: t, paper: p, claims: [%s]}\n"
    file.write_text(body % "{better: nobody, than: erm, metric: accuracy}")
    with pytest.raises(ConfigError, match=r"reproduction\.claims\.0[\s\S]*nobody[\s\S]*erm, dfr, usb, asb, ffr"):
        reproduction.reproduce(str(file), [f"store={tmp_path / 'store'}"], tmp_path)
    file.write_text(body % "{bettter: erm, than: erm, metric: accuracy}")
    with pytest.raises(ConfigError, match=r"reproduction\.claims\.0"):
        reproduction.read(str(file), ())
    with pytest.raises(ConfigError, match="file not found"):
        reproduction.read("ffr_figure9", ())
