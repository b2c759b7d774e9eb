"""Test-time augmentation with the symmetries of a radiograph, for detections with several categories on one box."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import RotationTransform
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform, TransformList, VFlipTransform
from torch import Tensor, nn

from implantdet.data.augmentation import SmoothResizeShortestEdge, SmoothResizeTransform, panoramic_zoom
from implantdet.data.checks import PANORAMIC
from implantdet.modeling.tiles import TiledDetector
from implantdet.modeling.uniting import Uniter

_UNDO_ON_MASK = {
    HFlipTransform: lambda masks: masks.flip(3),
    VFlipTransform: lambda masks: masks.flip(2),
    RotationTransform: lambda masks: masks.rot90(-1, (2, 3)),  # it turned by 90° counter-clockwise
}

_ALL = Uniter(nms_thresh=1.0, soft_nms_sigma=0.0, voting_iou=0.0, score_thresh=0.0, topk=-1)  # drops nothing


class SymmetryTTA(DatasetMapperTTA):
    """Versions of an image in Detectron2's sizes, each also flipped both ways and turned by a quarter.

    They shrink smoothly, as images for training do. The image is best given in its own size: what is small already
    comes out blurred in a larger one.

    Args:
        rot90: add each version turned by 90°. With ``flip`` these are the eight symmetries of the square.
        flip: add each version flipped horizontally, vertically, and both.
        panoramic_zoom: radiographs with the ``modality`` panoramic come this many times as large.
        **kwargs: ``min_sizes`` and ``max_size`` of ``DatasetMapperTTA``.
    """

    @configurable
    def __init__(self, *, rot90: bool, flip: bool, panoramic_zoom: float = 1.0, **kwargs: Any) -> None:
        super().__init__(flip=False, **kwargs)
        if not self.min_sizes:
            raise ValueError("TEST.AUG.MIN_SIZES is empty; expected lengths of the shorter edge, in pixels")
        self.panoramic_zoom = panoramic_zoom
        choices = itertools.product((False, True)[: 1 + rot90], *[(False, True)[: 1 + flip]] * 2)
        self.symmetries = tuple(choices)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from ``TEST.AUG`` and ``INPUT.PANORAMIC_ZOOM``."""
        own = {"rot90": cfg.TEST.AUG.ROT90, "panoramic_zoom": panoramic_zoom(cfg)}
        return super().from_config(cfg) | own

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Versions of a dataset dict with ``image`` (C, H, W), each with the ``transforms`` that made it."""
        image = dataset_dict["image"].numpy()
        height, width = image.shape[1:]
        # From the image in the dataset to the one that is given.
        before = TransformList([SmoothResizeTransform(dataset_dict["height"], dataset_dict["width"], height, width)])
        zoom = self.panoramic_zoom if dataset_dict.get("modality") == PANORAMIC else 1.0
        resized = []
        for min_size in self.min_sizes:
            sizes = round(zoom * min_size), round(zoom * self.max_size)
            resize = SmoothResizeShortestEdge(*sizes, "choice").get_transform(image[0])
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

    Detections are united category by category, so several categories on one box stay several detections: by NMS or, as
    ``MODEL.PART_HEAD`` asks for it, by a ``Uniter``, once over the candidates of all versions. Masks are averaged over
    the versions. By ``TEST.TILE_SIZE``, larger versions are looked at tile by tile.

    Args:
        cfg: with the keys of ``add_implantdet_config``; ``TEST.AUG`` is read.
        model: a ``GeneralizedRCNN``.
        batch_size: versions, or tiles of one, that pass through the model together.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 4) -> None:
        super().__init__(cfg, model, SymmetryTTA(cfg), batch_size)
        self.uniter = Uniter.from_config(cfg)
        options = {"uniter": _ALL, "batch_size": batch_size}
        self.tiled = TiledDetector(cfg, self.model, **options) if cfg.TEST.TILE_SIZE else None
        self.train(model.training)

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the model: without ``height`` and ``width``, detections are in pixels of the image that is given."""
        sized = [
            dict(zip(("height", "width"), x["image"].shape[1:], strict=True)) | x if "image" in x else x
            for x in batched_inputs
        ]
        return list(super().__call__(sized))

    @contextmanager
    def _turn_off_roi_heads(self, attrs: list[str]) -> Iterator[None]:
        """Detectron2's, which leaves them off where an exception comes between."""
        heads = self.model.roi_heads
        before = {name: getattr(heads, name) for name in attrs if hasattr(heads, name)}
        try:
            for name in before:
                setattr(heads, name, False)
            yield
        finally:
            for name, value in before.items():
                setattr(heads, name, value)

    def _batch_inference(self, batched_inputs: list[dict[str, Any]], detected_instances: Any = None) -> list[Instances]:
        if self.tiled is None:
            return super()._batch_inference(batched_inputs, detected_instances)
        # Without the height and width of the dataset's image: boxes stay in pixels of the version.
        images = [{"image": version["image"]} for version in batched_inputs]
        starts = range(0, len(images), self.batch_size)
        found = [output for start in starts for output in self.tiled(images[start : start + self.batch_size])]
        return [output["instances"] for output in found]

    def _get_augmented_boxes(self, augmented_inputs: list[dict[str, Any]], tfms: list[TransformList]) -> Any:
        if self.uniter is None:
            return super()._get_augmented_boxes(augmented_inputs, tfms)
        with self._turn_off_roi_heads(["uniter"]):  # what is united per version would be united twice
            found = self._batch_inference(augmented_inputs)
        boxes = [
            torch.from_numpy(transforms.inverse().apply_box(output.pred_boxes.tensor.cpu().numpy()))
            for output, transforms in zip(found, tfms, strict=True)
        ]
        return boxes, [output.scores for output in found], [output.pred_classes for output in found]

    def _merge_detections(self, all_boxes: Any, all_scores: Any, all_classes: Any, shape_hw: tuple[int, int]) -> Any:
        if self.uniter is None:
            return super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)
        versions = []
        for boxes, scores, classes in zip(all_boxes, all_scores, all_classes, strict=True):
            version = Instances(
                shape_hw, pred_boxes=Boxes(boxes.to(scores.device)), scores=scores, pred_classes=classes
            )
            version.pred_boxes.clip(shape_hw)
            versions.append(version)
        return self.uniter(versions)

    def _reduce_pred_masks(self, outputs: list[Instances], tfms: list[TransformList]) -> Tensor:
        turned_back = []
        for output, transforms in zip(outputs, tfms, strict=True):
            masks = output.pred_masks
            for transform in reversed(transforms.transforms):
                masks = _UNDO_ON_MASK.get(type(transform), lambda same: same)(masks)
            turned_back.append(masks)
        return torch.stack(turned_back).mean(dim=0)
