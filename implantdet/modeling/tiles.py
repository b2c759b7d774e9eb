"""Large images tile by tile: a detector that was trained on crops finds little in what is many times as large."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from implantdet.modeling.uniting import Uniter

EDGE = 1.0  # pixels; a box that comes as close to a tile's inner edge is cut off there


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles of ``size`` pixels begin that cover ``length``, evenly spread, neighbours sharing ``overlap``."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(index * (length - size) / (count - 1)) for index in range(count)]


class TiledDetector(nn.Module):
    """Looks at every image in overlapping tiles, and unites what it finds category by category, by NMS or Soft-NMS.

    What a tile's edge cuts off is left to the neighbour that shows it whole. No tile needs to show what is larger than
    the overlap: that is looked for in the whole image, shrunk to the size of a tile. Images no larger than a tile are
    looked at as they are.

    Args:
        model: a ``GeneralizedRCNN`` without masks.
        size: side of a tile, in pixels of the image that the model is given.
        overlap: what neighbours share at least, in pixels.
        uniter: makes detections of what all tiles show. It must not vote: each tile sees something else. If it lowers
            scores, by Soft-NMS, the heads do not before.
        batch_size: tiles that pass through the model together.

    Raises:
        ValueError: the overlap is not from 0 to less than the size, or the model predicts masks.
    """

    @configurable
    def __init__(self, model: nn.Module, *, size: int, overlap: int, uniter: Uniter, batch_size: int = 4) -> None:
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module  # processes have different numbers of tiles, and need not wait for each other
        if not 0 <= overlap < size:
            raise ValueError(
                f"TEST.TILE_OVERLAP must be from 0 to less than TEST.TILE_SIZE; found {overlap}, and {size}"
            )
        if getattr(model.roi_heads, "mask_on", False):
            raise ValueError("TEST.TILE_SIZE is for boxes alone: set MODEL.MASK_ON False, or TEST.TILE_SIZE 0")
        self.model = model
        self.size = size
        self.overlap = overlap
        self.uniter = uniter
        self.batch_size = batch_size
        self.train(model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Arguments of the constructor from ``TEST`` and ``MODEL.ROI_HEADS``."""
        heads, test, sigma = cfg.MODEL.ROI_HEADS, cfg.TEST, cfg.MODEL.PART_HEAD.SOFT_NMS_SIGMA
        uniter = Uniter(heads.NMS_THRESH_TEST, sigma, 0.0, heads.SCORE_THRESH_TEST, test.DETECTIONS_PER_IMAGE)
        return {"model": model, "size": test.TILE_SIZE, "overlap": test.TILE_OVERLAP, "uniter": uniter}

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """The detections of every image, as ``GeneralizedRCNN`` returns them.

        Args:
            batched_inputs: each with ``image``, (C, H, W), and the ``height`` and ``width`` to scale boxes to.
        """
        fits = [max(given["image"].shape[1:]) <= self.size for given in batched_inputs]
        small = [given for given, fit in zip(batched_inputs, fits, strict=True) if fit]
        whole = iter(self.model(small) if small else [])
        return [
            next(whole) if fit else {"instances": self._in_tiles(given)}
            for given, fit in zip(batched_inputs, fits, strict=True)
        ]

    def _in_tiles(self, given: dict[str, Any]) -> Instances:
        height, width = given["image"].shape[1:]
        corners = list(product(*(tile_starts(length, self.size, self.overlap) for length in (height, width))))
        tiles = [{"image": given["image"][:, y : y + self.size, x : x + self.size]} for y, x in corners]
        found = []
        for start in range(0, len(tiles), self.batch_size):
            outputs = self._look_at(tiles[start : start + self.batch_size])
            for (y, x), output in zip(corners[start:], outputs, strict=False):
                found.append(self._placed(output["instances"], y, x, (height, width)))
        found.append(self._larger_than_the_overlap(given["image"]))
        return detector_postprocess(self.uniter(found), given.get("height", height), given.get("width", width))

    def _larger_than_the_overlap(self, image: Tensor) -> Instances:
        """What the whole image shows that tiles may cut, in pixels of the image."""
        height, width = image.shape[1:]
        shape = [max(1, round(side * self.size / max(height, width))) for side in (height, width)]
        shrunk = F.interpolate(image[None].float(), size=shape, mode="bilinear", antialias=True)[0]
        (output,) = self._look_at([{"image": shrunk}])
        instances = output["instances"]
        boxes = instances.pred_boxes
        boxes.scale(width / shape[1], height / shape[0])
        sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
        # Tiles show what is smaller by their margins; a pixel more, as the shrunk image is less exact. Doubles unite.
        pixel = max(height, width) / self.size
        large = sides.amax(dim=1) > self.overlap - 2 * EDGE - pixel
        return Instances(
            (height, width),
            pred_boxes=boxes[large],
            scores=instances.scores[large],
            pred_classes=instances.pred_classes[large],
        )

    def _look_at(self, tiles: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """The model's detections in some tiles; its candidates, where they are united once over all tiles."""
        heads: Any = self.model.roi_heads
        own = getattr(heads, "uniter", None)
        if own is None or self.uniter.soft_nms_sigma == 0:
            return self.model(tiles)
        heads.uniter = None
        try:
            return self.model(tiles)
        finally:
            heads.uniter = own

    def _placed(self, instances: Instances, y: int, x: int, image_size: tuple[int, int]) -> Instances:
        """What a tile at this corner shows whole, in pixels of the image."""
        boxes = instances.pred_boxes.tensor + torch.tensor([x, y, x, y]).to(instances.pred_boxes.tensor)
        height, width = image_size
        low = boxes.new_tensor([x if x > 0 else -1.0, y if y > 0 else -1.0]) + EDGE
        right, bottom = x + self.size, y + self.size
        high = boxes.new_tensor([right if right < width else width + 1.0, bottom if bottom < height else height + 1.0])
        whole = (boxes[:, :2] >= low).all(dim=1) & (boxes[:, 2:] <= high - EDGE).all(dim=1)
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[whole]),
            scores=instances.scores[whole],
            pred_classes=instances.pred_classes[whole],
        )
