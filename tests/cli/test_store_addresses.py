"""Commands with stores whose addresses have signs in them that other programs give a meaning."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from counterpoise.cli import main


@pytest.fixture
def file(tmp_path):
    """An experiment file on forty images of two classes and two groups."""
    rows, rng = [], np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(tmp_path / f"images/{number}.png")
        group = ("red", "blue")[number // 2 % 2]
        rows.append({"image": f"images/{number}.png", "label": ("cat", "dog")[number % 2], "group": group})
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = {name: name for name in rows[0]}
    data = {"adapter": "csv", "root": str(tmp_path), "columns": columns, "splits": {}}
    path = tmp_path / "e.yaml"
    stages = [{"name": "only", "data": ["real"]}]
    path.write_text(json.dumps({"name": "case", "method": "erm", "data": data, "stages": stages}))
    return path


@pytest.mark.parametrize("name", ["my store #1", "what?x=1", "pc 100%41", "%41", "a: b"])
def test_a_store_lies_where_its_address_says(file, tmp_path, name):
    before = {path.name for path in tmp_path.iterdir()}
    store = f'"{tmp_path}/{name}"' if ": " in name else f"{tmp_path}/{name}"
    done = CliRunner().invoke(main, ["audit", str(file), f"store={store}"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == before | {name}
    assert (tmp_path / name / "tables").is_dir()


def test_runs_are_tracked_in_such_a_store(file, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name = "100%41 what?x=1 #2"
    before = {path.name for path in tmp_path.iterdir()}
    done = CliRunner().invoke(main, ["doctor", str(file), f"store={tmp_path}/{name}", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == before | {name}
    assert (tmp_path / name / "mlflow.db").stat().st_size > 0


def test_a_bucket_with_a_prefix_of_such_signs(file, tmp_path, monkeypatch, s3_server):
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="addresses")
    for prefix in ("exp#1", "exp?v=2"):
        arguments = ["audit", str(file), f"store=s3://addresses/{prefix}", "tracking.enabled=false"]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="addresses")["Contents"]]
    assert {key.partition("/")[0] for key in keys} == {"exp#1", "exp?v=2"}
    client.close()
