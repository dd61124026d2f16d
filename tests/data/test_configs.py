"""The dataset files in configs/: valid, with the sizes that they promise, and prompts for every cell."""

import pytest
import yaml

from counterpoise.config import Evaluation, Prompts
from counterpoise.config.plans import Usb
from counterpoise.data.audit import audit
from counterpoise.synthesis.selection.strategies import target_counts


@pytest.fixture
def configured(repository, imported):
    def configured(name: str, **data):
        tree = yaml.safe_load((repository / "configs" / "datasets" / f"{name}.yaml").read_text())
        return imported(**{**tree["data"], **data}), Prompts.model_validate(tree["prompts"])

    return configured


def prompts_of(loaded, prompts: Prompts) -> list[str]:
    names = loaded.view.names
    return [
        prompts.template.format(label=prompts.labels.get(label, label), group=prompts.groups.get(group, group))
        for label in names.classes
        for group in names.groups or [""]
    ]


def test_shapes(configured):
    loaded, prompts = configured("shapes", per_cell={"train": 294, "validation": 11, "test": 3})
    counts = loaded.view.where(split="train").counts
    assert counts.tolist() == [[294, 6], [6, 294]] * 2
    assert target_counts(Usb(strategy="usb"), counts, loaded.view.names).sum() == 1152
    assert audit(loaded.view, Evaluation()).cramers_v == pytest.approx(0.96)
    assert prompts_of(loaded, prompts)[:2] == ["a photo of a red circle", "a photo of a blue circle"]


def test_shapes_long_tail(configured):
    loaded, prompts = configured("shapes_long_tail", per_cell={"train": 500, "validation": 1, "test": 1})
    counts = loaded.view.where(split="train").counts[:, 0].tolist()
    assert (len(counts), counts[0], counts[-1]) == (8, 500, 10)
    assert counts == sorted(counts, reverse=True)
    assert prompts_of(loaded, prompts)[0] == "a photo of a circle"


@pytest.mark.parametrize("name", ["fashion", "fashion_long_tail"])
def test_fashion(make, configured, tmp_path, name):
    make.idx_files(tmp_path, train=400, test=100)
    small = {"fashion": {"per_class": 9}, "fashion_long_tail": {"factor": 2, "largest": 12}}[name]
    kind = {"fashion": {"kind": "biased", "rate": 0.9}, "fashion_long_tail": {"kind": "long_tailed"}}[name]
    # its odd rows have odd labels only, so all rows are taken
    loaded, prompts = configured(name, root=str(tmp_path), rows=None, imbalance={**kind, **small})
    said = prompts_of(loaded, prompts)
    assert said[0] == {"fashion": "a photo of a red t-shirt", "fashion_long_tail": "a photo of a grey t-shirt"}[name]
    assert said[-1].endswith("ankle boot")
    assert set(prompts.labels) == set(loaded.view.names.classes)


def test_clothing(configured, real_images):
    path = real_images / "clothing_kids"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    loaded, prompts = configured("clothing", path=str(path), classes=["Shorts", "Other"])
    assert "a photo of a child's garment, laid out flat" in prompts_of(loaded, prompts)
