"""``counterpoise compare`` on a piece of the testbed: what it adds, what it reuses, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from counterpoise.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = [
    "data.per_cell={train: 40, validation: 12, test: 20}",
    "data.imbalance={kind: biased, rate: 0.9}",
    "generator.num_inference_steps=2",
    "pool.shard_size=8",
    "pool.sampling.workers=0",
    "training.epochs=2",
    "evaluation.bootstrap=50",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def call(store, tmp_path_factory):
    def call(*arguments: str) -> tuple[dict, Path]:
        out = tmp_path_factory.mktemp("out")
        command = ["compare", "demo", f"store={store}", *SMALL, *arguments, "--out", str(out), "--json"]
        done = CliRunner().invoke(main, command)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), out

    return call


@pytest.fixture(scope="module")
def compared(call) -> tuple[dict, Path]:
    """One comparison of two methods; the other tests look at it or go on from it."""
    return call("--methods", "ffr,resample", "--seeds", "2")


def test_reference_and_control_are_added_and_named(compared, store):
    told, _ = compared
    methods = {row["method"]: row for row in told["methods"]}
    assert methods.keys() == {"erm", "ffr", "resample", "control"}
    assert (told["reference"], told["control"]) == ("erm", "control")
    assert [name for name, row in methods.items() if row["synthetic"]] == ["ffr"]
    audited = CliRunner().invoke(main, ["audit", "demo", f"store={store}", *SMALL, "tracking.enabled=false", "--json"])
    real = sum(map(sum, json.loads(audited.stdout.splitlines()[-1])["counts"]))
    ffr = next(row for row in told["rows"] if row["method"] == "ffr")
    shown = 2 * (ffr["synthetic_images"] + real)  # two epochs of either stage
    epochs = -(-shown // real)
    assert 2 * real < shown <= epochs * real
    assert told["control_of"] == {"method": "ffr", "base": "erm", "epochs": epochs, "images_shown": shown}
    assert methods["control"]["about"].startswith("control of ffr: erm for ")
    assert told["stages"] == {"fitted": 10, "found": 0}  # two seeds of: erm, ffr's two, resample, control


def test_every_row_has_its_regime_its_costs_and_its_config(compared):
    told, _ = compared
    rows = told["rows"]
    assert len(rows) == 8
    assert {row["regime"] for row in rows} == {"groups"}
    drawn = {row["method"]: row["images_drawn"] for row in rows}
    assert drawn["erm"] == drawn["resample"] == drawn["control"] == 0 < drawn["ffr"]
    assert drawn["ffr"] % 8 == 0
    for row in rows:
        assert row["accelerator_seconds"] >= row["seconds"] > 0
    assert all(row["accelerator_seconds"] > row["seconds"] + 0.5 for row in rows if row["method"] == "ffr")
    digests = {(row["method"], row["config"]) for row in rows}
    assert len(digests) == len({digest for _, digest in digests}) == 4  # of the method, not of the seed


def test_the_table_is_ranked_and_the_differences_are_paired(compared):
    told, _ = compared
    worst = [row["metrics"]["worst_group_accuracy"]["mean"] for row in told["methods"]]
    assert worst == sorted(worst, reverse=True)
    assert [row["place"] for row in told["methods"]] == [1 + sum(other > value for other in worst) for value in worst]
    pairs = [(found["method"], found["other"]) for found in told["differences"]]
    assert sorted(pairs) == [
        ("control", "erm"), ("ffr", "control"), ("ffr", "erm"), ("resample", "control"), ("resample", "erm"),
    ]  # fmt: skip
    values = {(row["method"], row["seed"]): row["worst_group_accuracy"] for row in told["rows"]}
    for found in told["differences"]:
        by_seed = [values[found["method"], seed] - values[found["other"], seed] for seed in (0, 1)]
        assert found["mean"] == pytest.approx(sum(by_seed) / 2)
    assert told["verdict"][0].startswith("Synthetic images")


def test_the_files_are_there(compared):
    told, out = compared
    assert set(told["files"]) == {"leaderboard.html", "leaderboard.json"}
    written = json.loads((out / "leaderboard.json").read_text())
    assert written == {key: value for key, value in told.items() if key not in ("files", "run_id")}
    page = (out / "leaderboard.html").read_text()
    assert "data:image/png" in page
    assert told["command"].split()[0] in page
    for row in told["methods"]:
        assert row["method"] in page
    assert told["verdict"][-1] in page


def test_mlflow_has_a_child_for_each_method_and_seed(compared, store):
    from mlflow import MlflowClient

    told, _ = compared
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    parent = client.get_run(told["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{told['run_id']}' and tags.step = 'fit'"
    )
    rows = {(row["method"], str(row["seed"])): row for row in told["rows"]}
    assert {(run.data.tags["method"], run.data.tags["seed"]) for run in children} == rows.keys()
    for run in children:
        row = rows[run.data.tags["method"], run.data.tags["seed"]]
        assert (run.data.tags["regime"], run.data.tags["config"]) == (row["regime"], row["config"])
        assert run.data.metrics["test/worst_group_accuracy"] == pytest.approx(row["worst_group_accuracy"])
    assert parent.data.metrics["ffr/accuracy"] == pytest.approx(
        sum(row["accuracy"] for row in told["rows"] if row["method"] == "ffr") / 2
    )
    names = {item.path for item in client.list_artifacts(told["run_id"])}
    assert {"leaderboard.html", "leaderboard.json", "config.yaml", "figures"} <= names
    config = Path(client.download_artifacts(told["run_id"], "config.yaml")).read_text()
    assert "control" in config


def test_another_question_trains_nothing(compared, call):
    first, _ = compared
    again, _ = call(
        "--methods", "resample,ffr", "--seeds", "0,1", "--by", "group_std", "--no-control", "tracking.enabled=false"
    )
    assert again["stages"] == {"fitted": 0, "found": 8}
    assert again["control"] is again["control_of"] is None
    std = [row["metrics"]["group_std"]["mean"] for row in again["methods"]]
    assert std == sorted(std)
    # what a method costs does not depend on who sampled its images, and when
    costs = [{row["method"]: row["images_drawn"] for row in told["rows"]} for told in (first, again)]
    assert costs[1].items() <= costs[0].items()


def test_one_seed_has_the_test_images_intervals_and_claims_nothing(compared, call, tmp_path):
    listed = tmp_path / "mine.yaml"
    listed.write_text("method: control\nstages: [{name: real, data: [real]}]\n")
    told, _ = call("--methods", f"ffr,erm,{listed}", "--seeds", "1,", "tracking.enabled=false")
    assert told["stages"] == {"fitted": 0, "found": 3}  # the listed control is erm itself, so nothing is new
    assert (told["intervals_over"], told["seeds"]) == ("test images", [1])
    assert told["control_of"] is None
    assert told["verdict"][0] == "One seed cannot show whether synthetic images help."
    assert {found["p"] for found in told["differences"]} == {None}
    accuracy = next(row for row in told["methods"] if row["method"] == "ffr")["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]


def test_a_table_for_people(compared, store):
    arguments = ["--methods", "erm,resample", "--seeds", "2", "tracking.enabled=false", "--out", str(store / "out")]
    done = CliRunner().invoke(main, ["compare", "demo", f"store={store}", *SMALL, *arguments])
    assert done.exit_code == 0, done.stderr
    for words in ("worst group", "eq. odds", "device s", "selected by", "No synthetic images were used"):
        assert words in " ".join(done.stdout.split()), done.stdout
    assert "0 stages trained now, 4 found in the store" in done.stdout
    assert str(store / "out" / "leaderboard.html") in done.stdout.replace("\n", "")
    assert max(map(len, done.stdout.splitlines())) <= 80


WRONG = {
    "unknown method": (["--methods", "fffr"], "did you mean 'ffr'?"),
    "method twice": (["--methods", "ffr,ffr"], "--methods"),
    "no seeds": (["--seeds", "0"], "--seeds"),
    "seeds that are none": (["--seeds", "a,b"], "0,3,7"),
    "unknown metric": (["--by", "worst_group"], "did you mean 'worst_group_accuracy'?"),
    "a cost to rank by": (["--by", "accelerator_seconds"], "there is no such metric"),
    "metric that this dataset has not": (["--by", "many"], "this dataset has no such metric"),
    "folder that is a file": (["--out", "README.md/x"], "--out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_before_any_work(case, tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    arguments, hint = WRONG[case]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    store = [f"store={tmp_path / 'store'}", "tracking.enabled=false"]
    done = CliRunner().invoke(main, ["compare", "demo", *store, *SMALL, *arguments, *out])
    assert done.exit_code == 2, (done.exception, done.output)
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    left = {path.relative_to(tmp_path / "store").parts[0] for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert not left & {"pool", "stages", "results"}
