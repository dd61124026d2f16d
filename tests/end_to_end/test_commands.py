"""The commands as users call them, on a piece of the testbed: what they print, what they reuse, what they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from counterpoise.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Shards hold more images than a cell lacks, so that what the filter rejects costs no second round of sampling: each
# round starts its workers anew.
SMALL = [
    "data.per_cell={train: 40, validation: 12, test: 20}",
    "data.imbalance={kind: biased, rate: 0.9}",
    "generator.num_inference_steps=2",
    "pool.shard_size=16",
    "pool.sampling.workers=0",
    "selection.near_duplicate=0.9995",
    "training.epochs=2",
    "seeds=[0]",
    "evaluation.bootstrap=50",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def call(store):
    """Runs a command in this process and returns its last line of standard output as JSON."""

    def call(command: str, *arguments: str) -> dict:
        done = CliRunner().invoke(main, [command, "demo", f"store={store}", *SMALL, *arguments, "--json"])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


@pytest.fixture(scope="module")
def ran(call, tmp_path_factory) -> tuple[dict, Path]:
    """One run of two methods; the other tests look at it or go on from it."""
    out = tmp_path_factory.mktemp("out")
    return call("run", "methods=[erm, ffr]", "--out", str(out)), out


def test_audit_counts_every_cell(call):
    audit = call("audit")
    assert {"labels", "groups", "counts", "imbalance_factor", "cramers_v", "majority_rate"} <= audit.keys()
    assert len(audit["counts"]) == len(audit["labels"])
    assert audit["cramers_v"] > 0.7


def test_plan_says_what_is_left_to_sample(call, ran):
    before = call("plan", "methods=[usb]")
    assert before["to_sample"] > 0
    assert before["held"] > 0  # what ffr sampled
    after = call("plan", "methods=[ffr]")
    assert after["to_sample"] == 0
    assert {"wanted", "held", "to_sample", "seconds"} <= after.keys()
    assert after["prompts"]["ffr"]["origin"] == "the template"
    assert after["prompts"]["ffr"]["counts"] == [[1, 1]] * 4
    assert after["prompts"]["ffr"]["digest"] == before["prompts"]["usb"]["digest"]


def test_a_run_leaves_a_report_and_rows(ran):
    result, out = ran
    rows = json.loads((out / "results.json").read_text())
    cost = {"synthetic_images", "images_drawn", "sampling_seconds", "seconds"}
    columns = {"method", "seed", "accuracy", "balanced_accuracy", "worst_group_accuracy"} | cost
    assert all(columns <= row.keys() for row in rows)
    assert [row["method"] for row in rows] == ["erm", "ffr", "control"]
    assert rows[0]["images_drawn"] == rows[0]["synthetic_images"] == rows[0]["sampling_seconds"] == 0
    assert rows[1]["images_drawn"] == result["synthesize"]["sampled"] > rows[1]["synthetic_images"] > 0
    assert rows[1]["sampling_seconds"] > 0
    page = (out / "report.html").read_text()
    assert "ffr" in page
    assert "data:image/" in page
    assert {"audit", "plan", "synthesize", "realism", "run_id", "summary", "rows"} <= result.keys()


def test_a_run_says_how_real_its_images_are(ran):
    result, out = ran
    (found,) = result["realism"]
    assert found["methods"] == ["ffr"]
    assert found["extractor"]["name"].startswith("CLIP")
    everything, *classes = found["rows"]
    assert [row["class"] for row in classes] == result["audit"]["labels"]
    assert everything["n_synthetic"] == result["synthesize"]["images"] == sum(row["n_synthetic"] for row in classes)
    assert everything["n_real"] == sum(map(sum, result["audit"]["counts"]))
    assert 0 <= everything["coverage"] <= 1
    assert 0 <= everything["probe"] <= 1
    page = (out / "report.html").read_text()
    assert "How real the synthetic images look" in page
    assert found["extractor"]["resizer"] in page


def test_a_second_run_computes_nothing_and_says_the_same_costs(call, ran, tmp_path):
    first, out = ran
    again = call("run", "methods=[erm, ffr]", "--out", str(tmp_path / "again"))
    assert again["synthesize"]["sampled"] == 0
    assert again["synthesize"]["reused"] == first["synthesize"]["sampled"]
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in first["rows"]]
    assert [found["reused"] for found in again["realism"]] == [True]
    assert again["realism"][0]["rows"] == first["realism"][0]["rows"]
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == json.loads(
        (out / "results.json").read_text()
    )


def test_synthesize_speaks_of_the_pool(call, ran):
    done = call("synthesize", "methods=[ffr]")
    keys = ["pool", "shards", "images", "sampled", "reused", "quarantined", "short_cells", "images_per_second"]
    assert set(keys) <= done.keys()
    assert done["rejected"].keys() == {"near_duplicate"}
    assert 0 <= done["purity"] <= 1


def test_the_report_shows_what_the_filters_kept_out(ran):
    result, out = ran
    page = (out / "report.html").read_text()
    assert "CLIP assigns" in page
    assert result["synthesize"]["rejected"]["near_duplicate"] > 0
    assert "near-duplicate of" in page


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_train_and_evaluate_give_means_over_seeds_and_rows(call, ran, command):
    done = call(command, "methods=[erm, ffr]")
    assert done["run_id"]
    assert list(done["summary"]) == ["erm", "ffr"]
    assert not {"method", "seed", "metrics", "cells"} & done.keys()  # of one row or of all? neither is at the top
    (row, *_), (means, *_) = done["rows"], done["summary"].values()
    assert 0 <= row["metrics"]["worst_group_accuracy"] <= row["metrics"]["balanced_accuracy"] <= 1
    assert {"label", "group", "n", "accuracy", "low", "high"} <= row["cells"][0].keys()
    assert means["worst_group_accuracy"][0] == pytest.approx(row["metrics"]["worst_group_accuracy"])  # one seed
    assert list(call(command, "methods=[erm, ffr]", "--method", "erm")["summary"]) == ["erm"]


def test_tables_for_people(ran, store):
    done = CliRunner().invoke(main, ["evaluate", "demo", f"store={store}", *SMALL, "methods=[erm, ffr]"])
    assert done.exit_code == 0
    assert "worst group accuracy" in done.stdout
    assert "ffr" in done.stdout


def test_mlflow_has_a_nested_run_for_every_step_and_fit(ran, store):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    result, _ = ran
    experiment = client.get_run(result["run_id"]).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{result['run_id']}'")
    assert {run.info.run_name for run in children} == {
        "audit",
        "plan",
        "synthesize",
        "realism",
        "erm seed 0",
        "ffr seed 0",
        "control seed 0",
    }
    realism = next(run for run in children if run.info.run_name == "realism")
    assert realism.data.metrics["ffr/fid"] == pytest.approx(result["realism"][0]["rows"][0]["fid"])
    assert "bicubic" in realism.data.params["ffr.resizer"]
    fit = next(run for run in children if run.info.run_name == "ffr seed 0")
    assert fit.data.metrics["test/worst_group_accuracy"] == pytest.approx(
        result["rows"][1]["metrics"]["worst_group_accuracy"]
    )
    assert {tag.dataset.name for tag in fit.inputs.dataset_inputs} >= {"real", "test"}
    assert {item.path for item in client.list_artifacts(result["run_id"])} >= {
        "report.html",
        "results.json",
        "config.yaml",
    }


def test_a_later_command_finds_the_runs_of_its_fits(call, ran, store):
    """It logs none of them again, and says in its own run where they are."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (result, _), again = ran, call("evaluate", "methods=[erm, ffr]")
    assert [row["run_id"] for row in again["rows"]] == [row["run_id"] for row in result["rows"]][:2]
    experiment = client.get_run(again["run_id"]).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{again['run_id']}'")
    assert {run.info.run_name for run in children} == {"synthesize"}
    fits = json.loads(Path(client.download_artifacts(again["run_id"], "fits.json")).read_text())
    assert [fit["run_id"] for fit in fits] == [row["run_id"] for row in again["rows"]]


def test_reading_the_store_imports_nothing_that_computes(ran, store, tmp_path):
    """As processes of their own: evaluate imports MLflow too, export not even that."""
    export = ["export", "--method", "ffr", "--format", "parquet", "--out", str(tmp_path / "out")]
    for arguments, heavy in ((["evaluate"], {"torch", "ray", "diffusers"}), (export, {"torch", "ray", "mlflow"})):
        command = ["counterpoise", *arguments, "demo", f"store={store}", *SMALL, "methods=[erm, ffr]"]
        code = (
            f"import sys; sys.argv = {command!r}\n"
            "from counterpoise.cli import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code\n"
            f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_run_with_a_store_on_s3(s3_server, tmp_path, monkeypatch):
    """Plan, pool, stages, results all in the bucket; the second run finds them there, from another folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3")
    client.create_bucket(Bucket="runs")

    def run(name):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        arguments = ["run", "demo", "store=s3://runs/demo", *SMALL, "methods=[ffr]", "training.epochs=1", "--json"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    def keys():
        """All but the records of MLflow runs, of which each folder has a database of its own."""
        there = {item["Key"]: item["ETag"] for item in client.list_objects_v2(Bucket="runs")["Contents"]}
        return {key: tag for key, tag in there.items() if not key.startswith("demo/tracking/")}

    first, left = run("one"), keys()
    assert {key.split("/")[1] for key in left} >= {"pool", "stages", "results"}
    second = run("two")
    assert first["synthesize"]["sampled"] > 0
    assert second["synthesize"]["sampled"] == 0
    assert second["rows"][0]["metrics"] == first["rows"][0]["metrics"]
    assert keys() == left
    client.close()


@pytest.mark.timeout(600)  # it trains and samples twice, in actors that start anew
def test_feedback_in_two_rounds(call, store, tmp_path):
    """Train → guided sampling → train → sampling with the new classifier → train; a second run computes nothing."""
    plan, section = "{uniform: {by: cell}}", "{criterion: hardness, every: 1, rounds: 2}"
    method = f"{{extends: feedback, method: twice, plans: {plan}, feedback: {section}}}"
    settings = (
        f"methods=[{method}]", "realism.extractor=none", "data.classes=[circle, ring]", "selection.near_duplicate=null",
    )  # fmt: skip
    arguments = (*settings, "--out", str(tmp_path))
    first = call("run", *arguments)
    pools = first["synthesize"]["pool"].split()
    assert len(pools) == 2
    made = [json.loads((store / "pool" / pool / "generation.json").read_text())["generation"] for pool in pools]
    classifiers = {generation["feedback"]["classifier"] for generation in made}
    assert len(classifiers) == 2
    assert all((store / "stages" / classifier / "stage.json").exists() for classifier in classifiers)
    assert first["rows"][0]["method"] == "twice"
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["synthetic_images"] == first["synthesize"]["images"]  # those of both rounds
    assert row["images_drawn"] == first["synthesize"]["sampled"]
    again = call("run", *arguments)
    assert again["synthesize"]["sampled"] == 0
    assert again["rows"][0]["metrics"] == first["rows"][0]["metrics"]
    assert json.loads((tmp_path / "results.json").read_text()) == [row]
    exported = call("export", *settings, "--format", "parquet", "--out", str(tmp_path / "exported"))
    assert 0 < exported["images"] < row["synthetic_images"]  # the second round's alone
    card = (tmp_path / "exported" / "README.md").read_text()
    assert [pool in card for pool in pools] == [False, True]


CUSTOM = "{method: m, plans: {p: {strategy: custom, counts: {ring: {rad: 1}}}}, stages: [{name: s, data: [p]}]}"

WRONG = {
    "experiment that is not there": (["run", "nothing"], "file not found"),
    "unknown method": (["run", "demo", "--method", "fff"], "did you mean"),
    "model that is not there": (["run", "demo", "generator.model=./nowhere"], "generator.model"),
    "folder that is no pipeline": (["synthesize", "demo", "generator.model=./configs"], "generator.model"),
    "unknown backbone": (["train", "demo", "training.backbone=resnet81"], "did you mean"),
    "Inception without its weights": (["run", "demo", "realism.extractor=inception"], "realism.extractor"),
    "scheduler that is not there": (
        ["synthesize", "demo", "generator.scheduler=EulerScheduler"],
        "generator.scheduler",
    ),
    "dataset root that is not there": (["audit", "fashion_ffr", "data.root=/nowhere"], "/nowhere"),
    "dataset root left out": (["audit", "fashion_ffr"], "data.root"),
    "unknown class": (["audit", "demo", "data.classes=[star, stra]"], "stra"),
    "impossible bias": (["audit", "demo", "data.imbalance={kind: biased, rate: 0.98, per_class: 100000}"], "100000"),
    "unknown group in a custom plan": (["plan", "demo", f"methods=[{CUSTOM}]"], "rad"),
    "store that is a file": (["audit", "demo", "store=README.md"], "store"),
    "store of an unknown kind": (["audit", "demo", "store=ftp://host/folder"], "ftp"),
    "prompt with an unknown word": (["synthesize", "demo", "prompts.template=a {colour} {label}"], "colour"),
    "criterion that is not there": (
        ["synthesize", "demo", "methods=[{extends: feedback, feedback: {criterion: entropie}}]"],
        "did you mean 'entropy'",
    ),
    "classifier that saw synthetic images": (
        ["plan", "demo", "methods=[{extends: feedback, feedback: {stage: final}}]"],
        "real images alone",
    ),
    "feedback from nowhere": (
        ["plan", "demo", "methods=[{extends: feedback, feedback: {stage: null, checkpoint: no.safetensors}}]"],
        "feedback.checkpoint",
    ),
    "condition on a text model": (["synthesize", "demo", "generator.condition={dropout: 0.5}"], "generator.condition"),
    "filter that is not there": (["synthesize", "demo", "selection.custom={nowhere:f: 1}"], "selection.custom"),
    "modifier without modifiers": (
        ["plan", "demo", "prompts.template=a {modifier} {group} {label}"],
        "prompts.modifiers",
    ),
    "prompt file that is not there": (["plan", "demo", "prompts.file=none.yaml"], "none.yaml"),
    "prompts from nobody": (
        ["plan", "demo", "prompts.contextual={llm: {model: m, endpoint: 'http://127.0.0.1:9/v1'}}"],
        "prompts.contextual.llm.endpoint",
    ),
    "two sources of prompts": (
        ["plan", "demo", "prompts.file=none.yaml", "prompts.modifiers=[big]"],
        "found file and modifiers",
    ),
    "template without the group": (["synthesize", "demo", "prompts.template=a {label}"], "group"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_ends_in_a_few_helpful_lines(case, tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    arguments, hint = WRONG[case]
    own_store = [] if any(argument.startswith("store=") for argument in arguments) else [f"store={tmp_path / 'store'}"]
    done = CliRunner().invoke(main, [*arguments, *own_store])
    assert done.exit_code == 2, (done.exception, done.output)
    assert done.stdout == ""
    _, error, message = done.stderr.partition("error: ")  # before it there may be a line of progress
    assert error
    assert hint in message
    assert "Traceback" not in done.stderr
    assert 2 <= len(message.splitlines()) <= 8, message
    left = {path.relative_to(tmp_path / "store").parts[0] for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert not left & {"pool", "stages", "results"}


@pytest.mark.parametrize("problem", ["bucket", "permission", "endpoint"])
def test_a_store_on_s3_that_cannot_be_used(problem, s3_server, strict_s3_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    endpoints = {"bucket": s3_server, "permission": strict_s3_server, "endpoint": "http://127.0.0.1:9"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoints[problem])
    done = CliRunner().invoke(main, ["run", "demo", "store=s3://nobodys-bucket/demo"])
    assert done.exit_code == 2, (done.exception, done.output)
    hint = {"bucket": "create the bucket", "permission": "AWS credentials", "endpoint": "AWS_ENDPOINT_URL"}[problem]
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_server_that_is_not_there_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = CliRunner().invoke(main, ["run", "demo", f"store={tmp_path}"])
    assert done.exit_code == 2
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert not (tmp_path / "tables").exists()


def test_doctor_finds_what_is_wrong(tmp_path):
    done = CliRunner().invoke(main, ["doctor", "demo", f"store={tmp_path}", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"]
    bad = CliRunner().invoke(main, ["doctor", "demo", f"store={tmp_path}", "generator.model=./nowhere"])
    assert bad.exit_code == 1
    assert "nowhere" in bad.stdout


def test_the_installed_command_keeps_standard_output_clean(store, ran, repository):
    """As a process of its own: one line of JSON, whatever Ray and MLflow have to say."""
    command = [str(Path(sys.executable).with_name("counterpoise")), "evaluate", "demo", f"store={store}", *SMALL]
    done = subprocess.run([*command, "methods=[erm]", "--json"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert list(json.loads(line)["summary"]) == ["erm"]
    assert "Traceback" not in done.stderr
