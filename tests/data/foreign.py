"""Small datasets in the formats of other tools, written to a folder."""

import json
import math

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 80, 60
NAN = math.nan


def picture(seed, width=WIDTH, height=HEIGHT):
    """A smooth grey picture, (height, width) of uint8, another one for every seed."""
    waves = np.random.default_rng(seed).uniform(-1, 1, (4, 3))
    y, x = np.mgrid[:height, :width] / 20
    levels = sum(np.sin(3 * a * x + 3 * b * y + 6 * c) for a, b, c in waves)
    return ((levels - levels.min()) / np.ptp(levels) * 255).astype(np.uint8)


def write_image(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, **size)).save(path)


def truncate(path, keep=0.7):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def write_yolo(root):
    """Roboflow's layout: two splits with equal file names, five boxes; one image without objects."""
    labels = {
        "train/a_jpg.rf.0a1b.jpg": "0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.1 0.2\n",
        "train/b.png": "1 0.5 0.5 1 1\n",
        "valid/a_jpg.rf.0a1b.jpg": "1 0.2 0.4 0.3 0.4\n0 0.8 0.8 0.1 0.1\n",
        "valid/c.png": "",
    }
    for seed, (name, lines) in enumerate(labels.items()):
        split, file = name.split("/")
        write_image(root / split / "images" / file, seed)
        label = root / split / "labels" / file
        label.parent.mkdir(exist_ok=True)
        label.with_suffix(".txt").write_text(lines)
    (root / "data.yaml").write_text(
        "train: D:/elsewhere/train/images\nval: ../valid/images\nnc: 2\nnames: ['ITI', 'x']\n"
    )
    (root / "README.roboflow.txt").write_text("no label\n")
    return root


def coco_content():
    return {
        "images": [
            {"id": 0, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 1, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 1,
                "bbox": [10, 20, 30, 15],
                "area": 450,
                "segmentation": [],
                "iscrowd": 0,
            },
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [0, 0, 80, 60], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 5, 10, 10], "segmentation": [[5, 5, 15, 5, 15, 15]]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [50, 5, 20, 50], "iscrowd": 0},
        ],
        "categories": [
            {"id": 0, "name": "teeth", "supercategory": "none"},
            {"id": 1, "name": "Bicon", "supercategory": "teeth"},
            {"id": 2, "name": "screw", "supercategory": "teeth"},
        ],
    }


def write_coco(root, content=None):
    """Three images beside one file, four annotations; Roboflow's heading category."""
    for seed, name in enumerate(("a.jpg", "b.png", "c.png")):
        write_image(root / name, seed)
    (root / "_annotations.coco.json").write_text(json.dumps(content or coco_content()))
    return root


def labelme_content(name, shapes):
    return {
        "version": "5.4",
        "imagePath": name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": shapes,
    }


def write_labelme(root):
    """Two images and their files: a rectangle and a polygon of one implant, a rectangle alone."""
    rectangle = {"label": "ITI", "shape_type": "rectangle", "points": [[40, 50], [10, 20]], "group_id": 1, "flags": {}}
    polygon = {"label": "crest", "shape_type": "polygon", "points": [[10, 10], [30, 10], [30, 20]], "group_id": 1}
    alone = {"label": "ITI", "shape_type": "rectangle", "points": [[0, 0], [8, 6]], "group_id": None}
    write_image(root / "images" / "a.png", 0)
    write_image(root / "images" / "b.png", 1)
    (root / "labels").mkdir()
    (root / "labels" / "a.json").write_text(json.dumps(labelme_content("..\\images\\a.png", [rectangle, polygon])))
    (root / "labels" / "b.json").write_text(json.dumps(labelme_content("b.png", [alone])))
    return root


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_label(root, line):
    path = root / "train/labels/b.txt"
    path.write_text(path.read_text() + line + "\n")


def edit_coco(root, key, index, **fields):
    edit_json(root / "_annotations.coco.json", lambda content: content[key][index].update(fields))


def tree(folder):
    """Contents of all files below a folder by their relative paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITERS = {"coco": write_coco, "yolo": write_yolo, "labelme": write_labelme}


def coco_records(root):
    content = json.loads((root / "_annotations.coco.json").read_text())
    return len(content["images"]), len(content["annotations"])


def yolo_records(root):
    images = [path for path in root.rglob("*") if path.suffix in (".jpg", ".png", ".tif")]
    labels = [path for path in root.rglob("labels/*.txt") if not path.is_symlink()]
    lines = [line for path in labels for line in path.read_text(errors="ignore").splitlines()]
    return len(images), len(lines)


def labelme_records(root):
    files = [json.loads(path.read_text()) for path in root.rglob("*.json")]
    unlabelled = len(list(root.rglob("*.png"))) - len(files)
    return len(files) + max(unlabelled, 0), sum(len(content["shapes"]) for content in files)
