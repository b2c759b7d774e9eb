"""From a dataset dict to what the model takes: read the radiograph, augment it, make tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from implantdet.data.augmentation import build_augmentation, panoramic_zoom
from implantdet.data.checks import PANORAMIC
from implantdet.data.images import modality_by_shape, read_radiograph, to_float
from implantdet.data.problems import DataError
from implantdet.taxonomy import THIRDS

MIN_THIRD = 0.5  # share of the box of a third that a crop has to leave: of less, its design cannot be read
MIN_OTHER = 0.05  # of any other box


def _supercategories(name: str) -> Sequence[str]:
    """Of a dataset's categories, where it has them; datasets know their classes only after they were read."""
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "thing_classes") and name in DatasetCatalog.list():
        DatasetCatalog.get(name)
    return metadata.get("supercategories", ())


class RadiographMapper(DatasetMapper):
    """Detectron2's mapper for radiographs: 8- and 16-bit grey levels, one channel or three equal ones.

    ``image`` comes out as float32 of shape (C, H, W) with levels from 0 to 255, whatever the file's depth, and
    ``instances`` with ``gt_implants``, the ``implant_id`` of each annotation (-1 where it has none). What a crop
    leaves less of than ``MIN_THIRD`` or ``MIN_OTHER`` loses its annotation: nobody could assess it. Radiographs
    with the ``modality`` panoramic, or as wide as only these are, come ``INPUT.PANORAMIC_ZOOM`` times as large.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        num_channels: int,
        supercategories: Sequence[str] = (),
        panoramic_augmentations: Sequence[T.Augmentation] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store the settings.

        Args:
            is_train: keep the annotations, as ``instances``.
            num_channels: C, 1 or 3.
            supercategories: of the categories, where the dataset has them.
            panoramic_augmentations: of panoramic radiographs; None: ``augmentations``, as for all others.
            **kwargs: those of :class:`detectron2.data.DatasetMapper`; ``image_format`` is without effect.

        Raises:
            ValueError: ``num_channels`` is another number.
        """
        super().__init__(is_train, **kwargs)
        if num_channels not in (1, 3):
            raise ValueError(f"MODEL.PIXEL_MEAN must have 1 or 3 values; found {num_channels}")
        self.num_channels = num_channels
        self.supercategories = tuple(supercategories)
        self.panoramic_augmentations = self.augmentations
        if panoramic_augmentations is not None:
            self.panoramic_augmentations = T.AugmentationList(panoramic_augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's settings with our augmentations.

        Raises:
            ValueError: the config asks for what only Detectron2's own mapper does.
        """
        for key, usual in (("MODEL.KEYPOINT_ON", False), ("MODEL.LOAD_PROPOSALS", False)):
            section, name = key.split(".")
            if cfg[section][name] != usual:
                raise ValueError(f"{key}: found {cfg[section][name]}, expected {usual}: RadiographMapper reads none")
        if cfg.INPUT.RANDOM_FLIP != "horizontal":
            raise ValueError(
                f"INPUT.RANDOM_FLIP: found {cfg.INPUT.RANDOM_FLIP!r}, expected its default: RadiographMapper flips "
                "both ways with the probability INPUT.FLIP_PROB, which may be 0"
            )
        settings = super().from_config(cfg, is_train)
        settings["augmentations"] = build_augmentation(cfg, is_train)
        settings["panoramic_augmentations"] = build_augmentation(cfg, is_train, panoramic_zoom(cfg))
        settings["num_channels"] = len(cfg.MODEL.PIXEL_MEAN)
        settings["supercategories"] = _supercategories(cfg.DATASETS.TRAIN[0]) if is_train and cfg.DATASETS.TRAIN else ()
        return settings

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict; it is not changed.

        Raises:
            DataError: the image cannot be read, or masks are asked for that are not there.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        levels = read_radiograph(dataset_dict["file_name"])
        utils.check_image_size(dataset_dict, levels)
        modality = dataset_dict.get("modality") or modality_by_shape(levels.shape)
        if modality is not None:
            dataset_dict["modality"] = modality  # for test-time augmentation
        dataset_dict["image"], transforms = self.augment(levels, modality)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, tuple(dataset_dict["image"].shape[1:]))
        return dataset_dict

    def augment(self, levels: np.ndarray, modality: str | None = None) -> tuple[torch.Tensor, T.TransformList]:
        """The model's image, (C, H, W), and how it was made, from (H, W) grey levels of ``read_radiograph``."""
        augmented = T.AugInput(to_float(levels))
        transforms = (self.panoramic_augmentations if modality == PANORAMIC else self.augmentations)(augmented)
        image = torch.from_numpy(np.array(augmented.image))  # copied: flips leave negative strides
        return image.repeat(self.num_channels, 1, 1), transforms

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, ...]
    ) -> None:
        if self.use_instance_mask:
            single = [item for item in dataset_dict["annotations"] if not item.get("iscrowd", 0)]  # crowds are left out
            masks = [annotation.get("segmentation") for annotation in single]
            if None in masks:
                raise DataError(
                    f"{dataset_dict['file_name']}: {masks.count(None)} of {len(masks)} annotations have no mask; "
                    "set MODEL.MASK_ON to False, or give every annotation a 'segmentation'"
                )
            if self.instance_mask_format == "polygon" and any(isinstance(mask, dict) for mask in masks):
                raise DataError(
                    f"{dataset_dict['file_name']}: a mask is a run-length code; set INPUT.MASK_FORMAT to 'bitmask', "
                    "which takes polygons too"
                )
        # Detectron2's steps, but with gt_implants before what is empty is dropped.
        size = image_shape[-2:]
        annotations = []
        for annotation in self._left_by_crop(dataset_dict.pop("annotations"), transforms, size):
            if annotation.get("iscrowd", 0):
                continue
            annotation.pop("keypoints", None)
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            annotations.append(utils.transform_instance_annotations(annotation, transforms, size))
        instances = utils.annotations_to_instances(annotations, size, mask_format=self.instance_mask_format)
        instances.gt_implants = torch.tensor([a.get("implant_id", -1) for a in annotations], dtype=torch.int64)
        if self.recompute_boxes and annotations:  # of what a crop left of the mask
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _left_by_crop(
        self, annotations: list[dict[str, Any]], transforms: T.TransformList, size: tuple[int, ...]
    ) -> list[dict[str, Any]]:
        if not annotations:
            return []
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        whole = transforms.apply_box(np.array(boxes, float))
        limit = np.array([size[1], size[0]] * 2)
        areas, seen = (np.prod(found[:, 2:] - found[:, :2], axis=1) for found in (whole, whole.clip(0, limit)))
        return [a for a, share in zip(annotations, seen / areas, strict=True) if share >= self._least(a["category_id"])]

    def _least(self, category: int) -> float:
        return (
            MIN_THIRD
            if category < len(self.supercategories) and self.supercategories[category] in THIRDS
            else MIN_OTHER
        )
