"""A dataset whose groups are known for training and validation, and unknown for the test images."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from counterpoise.cli import main
from counterpoise.config import compose
from counterpoise.workflow import outcomes
from counterpoise.workflow.run import Run

CONFIG = """
name: unknown
store: {folder}/store
data:
  adapter: csv
  root: {folder}/images
  columns: {{label: kind, group: ground, split: part}}
methods: [erm, balanced_softmax]
seeds: [0, 1]
training: {{backbone: small_cnn, image_size: 8, epochs: 1, batch_size: 8, select_by: accuracy}}
evaluation: {{bootstrap: 20, many: 9, few: 5}}
tracking: {{enabled: false}}
"""
MISSING = {"worst_group_accuracy", "balanced_accuracy", "group_std", "equalized_odds_max"}
FALLBACK = "Judged by mean class accuracy: worst-group accuracy is not defined on these images."


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "images").mkdir()
    rows = []
    for part, count in (("train", 6), ("validation", 3), ("test", 4)):
        for number in range(4 * count):
            kind, ground = ("cat", "dog")[number % 2], ("day", "night")[number // 2 % 2]
            name = f"{part}{number}.png"
            color = (200 if kind == "cat" else 40, 220 if ground == "day" else 30, 3 * number)
            Image.new("RGB", (8, 8), color).save(folder / "images" / name)
            rows.append({"image": name, "kind": kind, "ground": "" if part == "test" else ground, "part": part})
    with (folder / "images" / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    config = folder / "unknown.yaml"
    config.write_text(CONFIG.format(folder=folder))
    return config


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNTERPOISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def call(command: str, config: Path, *arguments: str):
    done = CliRunner().invoke(main, [command, str(config), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def trained(experiment) -> Path:
    """The experiment, with everything trained and measured."""
    done = call("evaluate", experiment)
    assert done.exit_code == 0, done.stderr
    return experiment


def test_evaluate_trains_and_prints_what_there_is(trained):
    done = call("evaluate", trained)  # from the store
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("erm", "balanced_softmax"))]
    assert [row[:2] for row in rows] == [[m, s] for m in ("erm", "balanced_softmax") for s in "01"]
    for row in rows:
        assert 0 <= float(row[2]) <= 100
        assert row[3:] == ["–", "–"]
    told = json.loads(call("evaluate", trained, "--json").stdout.splitlines()[-1])
    for means in told["summary"].values():
        assert {"accuracy", "class_balanced_accuracy"} <= means.keys()
        assert not MISSING & means.keys()
    assert {cell["accuracy"] for row in told["rows"] for cell in row["cells"]} == {None}


def test_progress_tells_the_metric_that_judges(trained):
    with Run(compose.load(str(trained))) as job:
        (outcome, *_), (task, *_) = job.outcomes, job.method_runs
    note = outcomes._Measurement(task).note()
    assert note == f"erm seed 0: class mean {outcome.test['metrics']['class_balanced_accuracy']:.1%}"


def test_a_run_has_its_report(trained, tmp_path):
    done = call("run", trained, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert FALLBACK in told["verdict"]
    assert not MISSING & told["summary"]["erm"].keys()
    page = (tmp_path / "report.html").read_text()
    assert FALLBACK in page
    assert "Class mean <small>accuracy in %" in page
    printed = call("run", trained, "--out", str(tmp_path)).stdout
    assert "–" in next(line for line in printed.splitlines() if line.startswith("erm"))
    assert FALLBACK in " ".join(printed.split())


def test_a_comparison_is_ranked_by_what_is_defined(trained, tmp_path):
    done = call("compare", trained, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["by"] == "class_balanced_accuracy"
    assert told["verdict"][-1] == FALLBACK
    assert {row["place"] for row in told["methods"]} <= {1, 2}
    assert not any(MISSING & row["metrics"].keys() for row in told["methods"])
    assert {found["metric"] for found in told["differences"]} == {"class_balanced_accuracy"}
    page = (tmp_path / "leaderboard.html").read_text()
    assert FALLBACK in page
    assert "leaderboard by class mean" in page
    printed = call("compare", trained, "--out", str(tmp_path)).stdout
    assert "ranked by class balanced accuracy" in printed


def test_an_undefined_metric_to_rank_by_is_refused_before_any_work(experiment, tmp_path):
    arguments = ["--by", "worst_group_accuracy", "--out", str(tmp_path / "out"), f"store={tmp_path / 'store'}"]
    done = call("compare", experiment, *arguments)
    assert done.exit_code == 2
    assert "this dataset has no such metric" in done.stderr
    assert "accuracy, class_balanced_accuracy" in done.stderr
    assert "balanced_softmax" not in done.stderr
    left = {path.relative_to(tmp_path / "store").parts[0] for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert not left & {"pool", "stages", "results"}


def test_mlflow_takes_what_there_is(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = call("compare", trained, "tracking.enabled=true", "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["run_id"]


def test_epochs_cannot_be_selected_by_groups_that_validation_does_not_know(experiment, tmp_path):
    table = experiment.parent / "images" / "labels.csv"
    (experiment.parent / "images" / "blind.csv").write_text(
        "\n".join(
            line.replace("day", "").replace("night", "") if "validation" in line else line
            for line in table.read_text().splitlines()
        )
    )
    arguments = ["data.table=blind.csv", "training.select_by=worst_group_accuracy", f"store={tmp_path}"]
    done = call("evaluate", experiment, *arguments)
    assert done.exit_code == 2
    assert "there are no validation images of known cells" in done.stderr
