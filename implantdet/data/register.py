"""Make a dataset folder known to Detectron2 under the names of its folds."""

from __future__ import annotations

import itertools
import logging
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from implantdet.data.idd import ANNOTATIONS, FOLDS, IMAGES, NUM_FOLDS, load_folds, load_idd, require_file
from implantdet.data.images import modality_by_shape
from implantdet.data.problems import DataError
from implantdet.taxonomy import SYSTEM

logger = logging.getLogger(__name__)

_TOLD: set[str] = set()  # folders that were warned of: a training reads its dataset many times
SYSTEMS = "_systems"  # behind the names of datasets of whole implants alone
_IMAGE_KEYS = ("patient_id", "source_id", "modality", "mm_per_pixel", "mm_per_pixel_matrix")
_ANNOTATION_KEYS = ("segmentation", "implant_id", "product_line", "axis", "visible_fraction")


def register_idd(root: str | Path, name: str = "idd") -> list[str]:
    """Register ``<name>_train_fold<k>``, ``<name>_val_fold<k>`` and ``<name>_test``, and each with ``_systems`` behind.

    Training on fold k means all folds but k; ``_systems`` keeps whole implants only. Nothing is read until a
    dataset is asked for; its classes stand in ``MetadataCatalog`` after that. Registering the same folder
    again does nothing.

    Args:
        root: dataset folder.
        name: prefix of the registered names.

    Returns:
        The registered names.

    Raises:
        DataError: the folder, its annotations or its folds are missing, or ``name`` belongs to another folder.
    """
    for file in (ANNOTATIONS, FOLDS):
        require_file(root, file)
    idd_root = str(Path(root).resolve())
    parts = [f"{kind}_fold{k}" for kind in ("train", "val") for k in range(NUM_FOLDS)] + ["test"]
    names = []
    for part in parts:
        for suffix in ("", SYSTEMS):
            full = f"{name}_{part}{suffix}"
            names.append(full)
            if full not in DatasetCatalog:
                DatasetCatalog.register(full, partial(_load, idd_root, part, bool(suffix), full))
                MetadataCatalog.get(full).set(idd_root=idd_root, evaluator_type="coco")
            elif MetadataCatalog.get(full).get("idd_root") != idd_root:
                taken = MetadataCatalog.get(full).get("idd_root", "another dataset")
                raise DataError(
                    f"dataset '{full}' already stands for {taken}, not for {idd_root}; choose another DATASETS.NAME"
                )
    return names


def image_ids(folds: dict[str, Any], part: str) -> set[int]:
    """Ids of the images in ``test``, ``val_fold<k>`` or ``train_fold<k>``.

    Raises:
        DataError: there is no such part.
    """
    if part == "test":
        return set(folds["test"])
    kind, _, k = part.partition("_fold")
    if kind not in ("train", "val") or k not in map(str, range(NUM_FOLDS)):
        last = NUM_FOLDS - 1
        raise DataError(
            f"part {part!r}: expected test, val_fold0 to val_fold{last}, or train_fold0 to train_fold{last}"
        )
    chosen = [ids for index, ids in enumerate(folds["folds"]) if (index == int(k)) == (kind == "val")]
    return {image_id for ids in chosen for image_id in ids}


def _load(root: str, part: str, systems_only: bool, name: str) -> list[dict[str, Any]]:
    content = load_idd(root)
    folds = load_folds(root, content)
    wanted = image_ids(folds, part)
    in_folds = {*folds["test"], *itertools.chain.from_iterable(folds["folds"])}
    left = sum(image["id"] not in in_folds for image in content["images"])
    if left and root not in _TOLD:
        _TOLD.add(root)
        logger.warning(
            "%s: %d image(s) of %s are in no part, and so in none of its datasets. If they came later, remove the file "
            "and run `implantdet folds`, which splits all anew; what was trained before has then seen other images.",
            *(Path(root) / FOLDS, left, ANNOTATIONS),
        )
    categories = [c for c in content["categories"] if not systems_only or c.get("supercategory") == SYSTEM]
    if not categories:
        what = f"has the supercategory '{SYSTEM}'" if systems_only else "is there; expected one or more"
        raise DataError(f"{name}: no category of {Path(root) / ANNOTATIONS} {what}")
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    MetadataCatalog.get(name).set(
        thing_classes=[category["name"] for category in categories],
        supercategories=[category.get("supercategory", "") for category in categories],
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    records = {
        image["id"]: {
            "file_name": str(Path(root) / IMAGES / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            **_told(image),
            "annotations": [],
        }
        for image in content["images"]
        if image["id"] in wanted
    }
    for annotation in content["annotations"]:
        if annotation["image_id"] in wanted and annotation["category_id"] in contiguous:
            records[annotation["image_id"]]["annotations"].append(
                {
                    "bbox": annotation["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": contiguous[annotation["category_id"]],
                    "iscrowd": 0,
                    **{key: annotation[key] for key in _ANNOTATION_KEYS if key in annotation},
                    **_compressed(annotation),
                }
            )
    return list(records.values())


def _told(image: dict[str, Any]) -> dict[str, Any]:
    """The optional fields of an image; its modality, if nobody tells it, by its shape."""
    told = {key: image[key] for key in _IMAGE_KEYS if key in image}
    modality = told.get("modality") or modality_by_shape((image["height"], image["width"]))
    return told | ({"modality": modality} if modality else {})


def _compressed(annotation: dict[str, Any]) -> dict[str, Any]:
    """The mask as Detectron2 decodes it, if it is an uncompressed run-length code."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return {"segmentation": mask_utils.frPyObjects(mask, *mask["size"])}
    return {}
