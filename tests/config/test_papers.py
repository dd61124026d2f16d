"""The published experiments at full size: whole, and planned on small data of the same form. Nothing is downloaded."""

import csv
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from counterpoise.config import Experiment, compose
from counterpoise.training.backbones import check_backbone
from counterpoise.training.loading.augmentation import check_transforms
from counterpoise.workflow.run import Run

PAPERS = sorted(path.stem for path in (compose.CONFIGS / "papers").glob("*.yaml"))


def load(name: str, *overrides: str) -> list[Experiment]:
    return compose.load(str(compose.CONFIGS / "papers" / f"{name}.yaml"), overrides)


def images(folder, cells):
    """A folder as the files describe it; ``cells`` gives the training images of each (label, group)."""
    picture = BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture, "png")
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "group", "split"])
        for (label, group), count in cells.items():
            for split, number in {"train": count, "validation": 2, "test": 2}.items():
                for index in range(number):
                    name = f"{split}-{label}-{group}-{index}.png"
                    (folder / name).write_bytes(picture.getvalue())
                    table.writerow([name, label, group, split])


@pytest.mark.parametrize("name", PAPERS)
def test_what_a_file_asks_for_exists(name):
    for experiment in load(name, "data.root=here"):
        check_backbone(experiment.training)
        check_transforms(experiment.training.augmentation, experiment.training.image_size)


def planned(name, folder, *overrides):
    with Run(load(name, f"data.root={folder}", f"store={folder / 'store'}", *overrides), step="plan") as job:
        return {"/".join(key): counts.tolist() for key, counts in job.wanted.items()}


def test_ffr_on_a_hundredth_of_celeba_hq(tmp_path):
    serious, smiling = "not smiling", "smiling"
    images(
        tmp_path,
        {(serious, "male"): 54, (serious, "female"): 54, (smiling, "female"): 78, (smiling, "male"): 78},
    )
    wanted = planned("ffr_celeba_hq", tmp_path)
    assert wanted["usb/usb"] == [[75, 24], [0, 73]]  # 3, 54, 78 and 5 images are left of the cells
    assert wanted["ffr/asb"] == [[43, 43], [43, 43]]  # 172 in all


def test_aim_fair_has_ten_images_of_each_cell_to_every_nine_in_its_biased_set(tmp_path):
    images(
        tmp_path,
        {(label, group): 20 for label in ("not smiling", "smiling") for group in ("male", "female")},
    )
    wanted = planned("aim_fair_celeba", tmp_path, "data.imbalance.per_class=18")
    assert wanted["aim_fair/biased"] == [[1000, 9000], [9000, 1000]]  # as the authors' runner
    assert wanted["aim_fair/balanced"] == [[5000, 5000], [5000, 5000]]
