"""From a dataset dict to what the model takes: read the radiograph, augment it, make tensors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from implantdet.data.augmentation import build_augmentation
from implantdet.data.images import read_radiograph, to_float
from implantdet.data.problems import DataError


class RadiographMapper(DatasetMapper):
    """Detectron2's mapper for radiographs: 8- and 16-bit grey levels, one channel or three equal ones.

    ``image`` comes out as float32 of shape (C, H, W) with levels from 0 to 255, whatever the file's depth.
    """

    @configurable
    def __init__(self, is_train: bool, *, num_channels: int, **kwargs: Any) -> None:
        """Store the settings.

        Args:
            is_train: keep the annotations, as ``instances``.
            num_channels: C, 1 or 3.
            **kwargs: those of :class:`detectron2.data.DatasetMapper`; ``image_format`` is without effect.

        Raises:
            ValueError: ``num_channels`` is another number.
        """
        super().__init__(is_train, **kwargs)
        if num_channels not in (1, 3):
            raise ValueError(f"MODEL.PIXEL_MEAN must have 1 or 3 values; found {num_channels}")
        self.num_channels = num_channels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's settings with our augmentations; ``INPUT.CROP`` still goes first."""
        settings = super().from_config(cfg, is_train)
        crops = [augmentation for augmentation in settings["augmentations"] if isinstance(augmentation, T.RandomCrop)]
        settings["augmentations"] = crops + build_augmentation(cfg, is_train)
        settings["num_channels"] = len(cfg.MODEL.PIXEL_MEAN)
        return settings

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict; it is not changed.

        Raises:
            DataError: the image cannot be read, or masks are asked for that are not there.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        levels = read_radiograph(dataset_dict["file_name"])
        utils.check_image_size(dataset_dict, levels)
        augmented = T.AugInput(to_float(levels))
        transforms = self.augmentations(augmented)
        image = torch.from_numpy(np.array(augmented.image))  # copied: flips leave negative strides
        dataset_dict["image"] = image.repeat(self.num_channels, 1, 1)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, tuple(image.shape))
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, ...]
    ) -> None:
        if self.use_instance_mask:
            masks = [annotation.get("segmentation") for annotation in dataset_dict["annotations"]]
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
        super()._transform_annotations(dataset_dict, transforms, image_shape)
