"""A tiny dataset in our format, and a config that trains on it in seconds."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from hypothesis import settings

from implantdet.config import add_implantdet_config
from implantdet.data.register import register_idd
from implantdet.engine.pretrainer import trainer_class
from implantdet.engine.setup import complete_from_data

# The same examples on every machine: a red test can be repeated.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).parents[1]
CATEGORIES = [
    {"id": 1, "name": "coronal.level.bone", "supercategory": "coronal"},
    {"id": 2, "name": "middle.thread.v_shaped", "supercategory": "middle"},
    {"id": 3, "name": "apical.apex.dome", "supercategory": "apical"},
    {"id": 4, "name": "Bicon", "supercategory": "system"},
    {"id": 5, "name": "ITI", "supercategory": "system"},
]


def paint_radiograph(rng, size, num_implants):
    """A grey image (size, size) with upright bright implants, and their boxes [x, y, w, h]."""
    image = rng.normal(90, 12, (size, size)).clip(0, 255).astype(np.uint8)
    boxes = []
    for column in range(num_implants):
        w, h = int(rng.integers(size // 8, size // 5)), int(rng.integers(size // 2, int(size * 0.7)))
        x = int(size * (column + 0.5) / num_implants - w / 2)
        y = int(rng.integers(2, size - h - 2))
        image[y : y + h, x : x + w] = 220
        boxes.append([float(x), float(y), float(w), float(h)])
    return image, boxes


def thirds(box):
    x, y, w, h = box
    return [[x, y + h * third / 3, w, h / 3] for third in range(3)]


def rectangle(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_idd(root, num_images=10, size=64, masks=True, seed=0):
    """Write a dataset folder: 1 or 2 implants per image, 2 images in the test set and in each fold (of 10)."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    implant_id = 0
    for image_id in range(1, num_images + 1):
        image, boxes = paint_radiograph(rng, size, num_implants=1 + image_id % 2)
        name = f"{image_id:03d}.png"
        cv2.imwrite(str(root / "images" / name), image)
        content["images"].append(
            {"id": image_id, "file_name": name, "width": size, "height": size, "patient_id": f"p{image_id}"}
        )
        for box in boxes:
            implant_id += 1
            for category_id, bbox in [*enumerate(thirds(box), start=1), (4 + implant_id % 2, box)]:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": bbox,
                        "area": bbox[2] * bbox[3],
                        "iscrowd": 0,
                        "implant_id": implant_id,
                        **({"segmentation": rectangle(bbox)} if masks else {}),
                    }
                )
    ids = [image["id"] for image in content["images"]]
    folds = {"seed": seed, "group_by": "patient_id", "test": ids[::5], "folds": [ids[k::5] for k in range(1, 5)]}
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "folds.json").write_text(json.dumps(folds), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def idd_root(tmp_path_factory):
    """Ten images with boxes and masks; six of them are the training set of each fold, two its validation set."""
    return write_idd(tmp_path_factory.mktemp("idd") / "masks")


@pytest.fixture(scope="session")
def boxes_only_root(tmp_path_factory):
    """The same without masks."""
    return write_idd(tmp_path_factory.mktemp("idd") / "boxes", masks=False)


@pytest.fixture
def tiny_cfg(idd_root, tmp_path):
    """A function: the complete config of opg_smoke.yaml on the tiny dataset; arguments are pairs of key and value."""

    def build(*opts, root=idd_root):
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(REPOSITORY / "configs/opg_smoke.yaml"))
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out"), *tiny_dataset(root), *opts])
        register_idd(cfg.DATASETS.ROOT, cfg.DATASETS.NAME)
        complete_from_data(cfg)
        (tmp_path / "out").mkdir(exist_ok=True)
        cfg.freeze()
        return cfg

    return build


@pytest.fixture
def untrained():
    """A function that builds a trainer, whose writers are closed although it is never trained."""
    trainers = []

    def build(cfg):
        trainers.append(trainer_class(cfg)(cfg))
        return trainers[-1]

    yield build
    for trainer in trainers:
        for hook in trainer._hooks:
            for writer in getattr(hook, "_writers", ()):
                writer.close()


def tiny_dataset(root):
    """The options that put a dataset folder of ``write_idd`` into a config."""
    name = f"tiny_{root.name}"
    return [
        *("DATASETS.ROOT", str(root), "DATASETS.NAME", name),
        *("DATASETS.TRAIN", f"('{name}_train_fold0',)", "DATASETS.TEST", f"('{name}_val_fold0',)"),
        *("SOLVER.IMS_PER_BATCH", "2"),
    ]
