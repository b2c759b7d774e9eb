"""Images for pre-training: a folder of radiographs or registered datasets, without labels and without test images."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils import comm
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from numpy import ndarray
from torchvision.transforms import RandomResizedCrop

from implantdet.data.augmentation import SmoothResizeTransform, panoramic_zoom
from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.dicom import header_of
from implantdet.data.images import find_radiographs
from implantdet.data.phash import picture_hashes, same_pictures
from implantdet.data.problems import DataError
from implantdet.data.register import SYSTEMS

logger = logging.getLogger(__name__)


class SquareCrop(T.Augmentation):
    """Crop at random and resize the crop to a square.

    Args:
        size: side of the square, in pixels.
        min_area: smallest share of the image that is cropped, in (0, 1]; the crop's aspect ratio is 3:4 to 4:3.
            1: the whole image, whatever its aspect ratio.
        max_area: largest share, in [``min_area``, 1].

    Raises:
        ValueError: a share is out of its range.
    """

    def __init__(self, size: int, min_area: float, max_area: float = 1.0) -> None:
        super().__init__()
        if not 0 < min_area <= max_area <= 1:
            raise ValueError(
                f"found INPUT.MIN_CROP_AREA {min_area} and INPUT.MAX_CROP_AREA {max_area}; expected shares of the "
                "image, 0 < MIN_CROP_AREA <= MAX_CROP_AREA <= 1"
            )
        self.size = size
        self.min_area = min_area
        self.max_area = max_area

    def get_transform(self, image: ndarray) -> Transform:
        """Draw the crop, from torch's generator."""
        height, width = image.shape[:2]
        top, left, h, w = 0, 0, height, width
        if self.min_area < 1:
            shape = torch.empty(1, height, width, device="meta")
            top, left, h, w = RandomResizedCrop.get_params(shape, (self.min_area, self.max_area), (3 / 4, 4 / 3))
        resize = SmoothResizeTransform(h, w, self.size, self.size)
        return TransformList([CropTransform(left, top, w, h), resize])


class UnlabelledMapper(RadiographMapper):
    """Maps dataset dicts, with or without annotations, to square images without any.

    For training a random crop of ``MODEL.VIT.IMG_SIZE``, flipped and turned; else the whole image at that size.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Settings from ``INPUT`` and ``MODEL.VIT.IMG_SIZE``. No noise: it would become what is to be predicted."""
        settings = super().from_config(cfg, is_train)
        settings["augmentations"] = _augmentations(cfg, is_train)
        settings["panoramic_augmentations"] = _augmentations(cfg, is_train, panoramic_zoom(cfg))
        return settings

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict; it is not changed."""
        labels = ("annotations", "width", "height")  # a size that is wrong would matter to annotations alone
        mapped = super().__call__({key: value for key, value in dataset_dict.items() if key not in labels})
        if self.is_train:  # what Detectron2's own loader groups images by
            mapped["height"], mapped["width"] = mapped["image"].shape[1:]
        return mapped


class LeaveOutUnreadable:
    """A mapper that warns of images that cannot be read, and goes on: one broken file ends no training of days.

    Args:
        mapper: maps the others.
    """

    def __init__(self, mapper: UnlabelledMapper) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """What the mapper makes of a dataset dict; None if the image cannot be read."""
        try:
            return self.mapper(dataset_dict)
        except DataError as error:
            logger.warning("left out: %s", error)
            return None


def _augmentations(cfg: CfgNode, is_train: bool, zoom: float = 1.0) -> list[T.Augmentation]:
    size = cfg.MODEL.VIT.IMG_SIZE
    if not is_train:
        return [SquareCrop(size, 1.0)]
    areas = [cfg.INPUT.MIN_CROP_AREA, cfg.INPUT.MAX_CROP_AREA]
    if areas[0] != 1:  # 1: whole images
        areas = [area / zoom**2 for area in areas]
    return [
        SquareCrop(size, *areas),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=True, vertical=False),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=False, vertical=True),
        T.RandomApply(T.RandomRotation([-90, 90], sample_style="choice"), cfg.INPUT.ROT90_PROB),
    ]


def unlabelled_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images to pre-train on: those of ``DATASETS.IMAGE_FOLDER`` or, if it is empty, of ``DATASETS.TRAIN``.

    Images of ``DATASETS.TEST`` and of ``<DATASETS.NAME>_test`` are left out, also copies of them under other names,
    unless their dataset, of parts or of whole implants, is named in ``DATASETS.TRAIN``. In a folder, and in datasets of
    another origin, that means the same picture, by its perceptual hash: in another format or size, flipped or
    re-contrasted. If none of these datasets is registered, a warning says so.

    Raises:
        DataError: there is no image, or a test image cannot be read.
    """
    folder, asked_for = cfg.DATASETS.IMAGE_FOLDER, set(cfg.DATASETS.TRAIN)
    # Every record with the dataset folder that it is from, if it is from one of ours.
    records: list[tuple[str | None, dict[str, Any]]]
    if folder:
        source, records = f"DATASETS.IMAGE_FOLDER '{folder}'", [(None, item) for item in image_folder_dicts(folder)]
    else:
        source = f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}"
        records = [(_root(name), record) for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    # Of a dataset folder of ours, the sets of whole implants alone have the same images.
    ours = {name.removesuffix(SYSTEMS) for name in asked_for if _root(name) is not None}
    asked_for |= ours | {f"{name}{SYSTEMS}" for name in ours}
    held_out = {*cfg.DATASETS.TEST, f"{cfg.DATASETS.NAME}_test"} - asked_for
    known = [name for name in sorted(held_out) if name in DatasetCatalog]
    if held_out and not known:
        logger.warning(
            "%s: no image is left out as a test image, since no dataset %s is registered. To hold test images out, "
            "give their dataset folder, with annotations.json and folds.json, as DATASETS.ROOT (found '%s')",
            *(source, " or ".join(sorted(held_out)), cfg.DATASETS.ROOT),
        )
    tested = [(_root(name), record["file_name"]) for name in known for record in DatasetCatalog.get(name)]
    if folder:  # what the main process has: folders may differ between machines, and all have to come to the same
        records = comm.all_gather(records)[0]
    dicts = [record for _, record in records]
    unlike = set(map(id, without_copies(dicts, [path for _, path in tested])))
    stays = comm.all_gather([id(record) in unlike for record in dicts])[0]
    kept = [record for record, is_kept in zip(dicts, stays, strict=True) if is_kept]
    num_unreadable = 0
    for root in dict.fromkeys(root for root, _ in records):
        # Folds of one dataset folder have no picture in common (`implantdet folds`).
        strange = [path for other, path in tested if root is None or other != root]
        own = {id(record) for origin, record in records if origin == root}
        mine = [record for record in kept if id(record) in own]
        if mine and strange:
            fine, num_broken = without_same_pictures(mine, strange)
            gone = own - set(map(id, fine))
            kept = [record for record in kept if id(record) not in gone]
            num_unreadable += num_broken
    num_tested = len(dicts) - len(kept) - num_unreadable
    logger.info(
        "%s: %d images without labels; left out as test images: %d, as unreadable: %d",
        *(source, len(kept), num_tested, num_unreadable),
    )
    if not kept:
        unreadable = f" and {num_unreadable} that cannot be read" if num_unreadable else ""
        raise DataError(
            f"{source}: found {len(dicts)} images, none of which is left without the test images{unreadable}"
        )
    return kept


def _root(dataset_name: str) -> str | None:
    """The dataset folder of ours that a registered dataset is from."""
    root = MetadataCatalog.get(dataset_name).get("idd_root")
    return None if root is None else str(root)


def image_folder_dicts(folder: str | Path) -> list[dict[str, Any]]:
    """Dataset dicts of all images in a folder and its subfolders, ordered by name; with ``modality`` if DICOM tells it.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    try:
        paths = find_radiographs(folder)
    except DataError as error:
        raise DataError(f"DATASETS.IMAGE_FOLDER {error.message}") from error
    records: list[dict[str, Any]] = [{"file_name": str(path), "image_id": index} for index, path in enumerate(paths)]
    for record in records:
        _, modality = header_of(record["file_name"])
        if modality is not None:
            record["modality"] = modality
    return records


def without_copies(dicts: Sequence[dict[str, Any]], held_out: Sequence[str]) -> list[dict[str, Any]]:
    """Leave out the dataset dicts whose image file has the same bytes as one of the files ``held_out``.

    Raises:
        DataError: one of these cannot be read.
    """
    by_size: dict[int, set[bytes]] = defaultdict(set)
    for path in held_out:
        try:
            by_size[Path(path).stat().st_size].add(_digest(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read, so copies of this test image cannot be found: {error}") from error

    def is_copy(path: str) -> bool:
        try:
            size = Path(path).stat().st_size
            return size in by_size and _digest(path) in by_size[size]  # few files of other images have such a size
        except OSError:  # the mapper warns of it
            return False

    return [record for record in dicts if not is_copy(record["file_name"])]


def without_same_pictures(dicts: Sequence[dict[str, Any]], held_out: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Leave out the dataset dicts whose image shows the same picture as one of the files ``held_out``.

    And, with a warning, those whose image cannot be read; the second result is their number. Processes share the work.

    Raises:
        DataError: one of the files ``held_out`` cannot be read.
    """
    paths = [*held_out, *(record["file_name"] for record in dicts)]
    rank, world_size = comm.get_rank(), comm.get_world_size()
    hashes: list[Any] = [None] * len(paths)
    for other, share in enumerate(comm.all_gather(picture_hashes(paths[rank::world_size], "looking for test images"))):
        hashes[other::world_size] = share
    first = len(held_out)
    errors = [found if isinstance(found, DataError) else None for found in hashes]
    for error in filter(None, errors[:first]):
        raise error
    for error in filter(None, errors[first:]):
        logger.warning("left out: %s", error)
    readable = [record for record, error in zip(dicts, errors[first:], strict=True) if error is None]
    known = np.stack([found for found, error in zip(hashes, errors, strict=True) if error is None])
    copies = {j - first for _, j, _ in same_pictures(known, first) if j >= first}
    return [record for index, record in enumerate(readable) if index not in copies], len(dicts) - len(readable)


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
