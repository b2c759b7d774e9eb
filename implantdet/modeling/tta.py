"""Test-time augmentation with the symmetries of a radiograph, for detections with several categories on one box."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import RotationTransform
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform, TransformList, VFlipTransform
from torch import Tensor, nn

from implantdet.data.augmentation import SmoothResizeShortestEdge, SmoothResizeTransform
from implantdet.modeling.soft_nms import soft_nms

_UNDO_ON_MASK = {
    HFlipTransform: lambda masks: masks.flip(3),
    VFlipTransform: lambda masks: masks.flip(2),
    RotationTransform: lambda masks: masks.rot90(-1, (2, 3)),  # it turned by 90° counter-clockwise
}


class SymmetryTTA(DatasetMapperTTA):
    """Versions of an image in Detectron2's sizes, each also flipped both ways and turned by a quarter.

    They shrink smoothly, as images for training do. The image is best given in its own size: what is small already
    comes out blurred in a larger one.

    Args:
        rot90: add each version turned by 90°. With ``flip`` these are the eight symmetries of the square.
        flip: add each version flipped horizontally, vertically, and both.
        **kwargs: ``min_sizes`` and ``max_size`` of ``DatasetMapperTTA``.
    """

    @configurable
    def __init__(self, *, rot90: bool, flip: bool, **kwargs: Any) -> None:
        super().__init__(flip=False, **kwargs)
        choices = itertools.product((False, True)[: 1 + rot90], *[(False, True)[: 1 + flip]] * 2)
        self.symmetries = tuple(choices)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from ``TEST.AUG``."""
        return super().from_config(cfg) | {"rot90": cfg.TEST.AUG.ROT90}

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Versions of a dataset dict with ``image`` (C, H, W), each with the ``transforms`` that made it."""
        image = dataset_dict["image"].numpy()
        height, width = image.shape[1:]
        # From the image in the dataset to the one that is given.
        before = TransformList([SmoothResizeTransform(dataset_dict["height"], dataset_dict["width"], height, width)])
        resized = []
        for min_size in self.min_sizes:
            resize = SmoothResizeShortestEdge(min_size, self.max_size, "choice").get_transform(image[0])
            # Channel by channel, as the resize takes them.
            smaller = torch.from_numpy(np.stack([resize.apply_image(channel) for channel in image]))
            resized.append(dataset_dict | {"image": smaller, "transforms": before + resize})
        return [_turn(version, *symmetry) for version in resized for symmetry in self.symmetries]


def _turn(version: dict[str, Any], quarter: bool, horizontal: bool, vertical: bool) -> dict[str, Any]:
    height, width = version["image"].shape[1:]
    transforms: list[Any] = [RotationTransform(height, width, 90)] if quarter else []
    height, width = (width, height) if quarter else (height, width)
    transforms += [HFlipTransform(width)] if horizontal else []
    transforms += [VFlipTransform(height)] if vertical else []
    # Channel by channel: OpenCV drops the axis of a single channel.
    image = np.stack([TransformList(transforms).apply_image(channel) for channel in version["image"].numpy()])
    return version | {"image": torch.from_numpy(image), "transforms": version["transforms"] + TransformList(transforms)}


class ImplantRCNNWithTTA(GeneralizedRCNNWithTTA):
    """A detector that looks at each image in all versions of ``SymmetryTTA`` and unites what it finds.

    Detections are united category by category, so several categories on one box stay several detections: by NMS or,
    with ``MODEL.PART_HEAD.SOFT_NMS_SIGMA``, by Soft-NMS, once over what all versions found. Masks are averaged over the
    versions.

    Args:
        cfg: with the keys of ``add_implantdet_config``; ``TEST.AUG`` is read.
        model: a ``GeneralizedRCNN``.
        batch_size: versions that pass through the model together.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 4) -> None:
        super().__init__(cfg, model, SymmetryTTA(cfg), batch_size)

    def _get_augmented_boxes(self, *args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        # A score that every version had decayed already would be decayed twice.
        with self._turn_off_roi_heads(["soft_nms_sigma"]):
            return super()._get_augmented_boxes(*args)

    def _merge_detections(
        self, all_boxes: Tensor, all_scores: list[Tensor], all_classes: list[Tensor], shape_hw: tuple[int, int]
    ) -> Instances:
        sigma = self.cfg.MODEL.PART_HEAD.SOFT_NMS_SIGMA
        if sigma == 0:
            return super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)
        united = Instances(shape_hw, pred_boxes=Boxes(all_boxes))
        united.pred_boxes.clip(shape_hw)
        united.scores = torch.tensor(all_scores, device=all_boxes.device)
        united.pred_classes = torch.tensor(all_classes, dtype=torch.long, device=all_boxes.device)
        return soft_nms(united, sigma, self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, self.cfg.TEST.DETECTIONS_PER_IMAGE)

    def _reduce_pred_masks(self, outputs: list[Instances], tfms: list[TransformList]) -> Tensor:
        turned_back = []
        for output, transforms in zip(outputs, tfms, strict=True):
            masks = output.pred_masks
            for transform in reversed(transforms.transforms):
                masks = _UNDO_ON_MASK.get(type(transform), lambda same: same)(masks)
            turned_back.append(masks)
        return torch.stack(turned_back).mean(dim=0)
