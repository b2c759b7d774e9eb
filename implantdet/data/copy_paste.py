"""Copy an implant with all its parts from one radiograph into another (Simple Copy-Paste, arXiv:2012.07177)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou

from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.edge import touches_frame
from implantdet.data.images import modality_by_shape

Mapper = Callable[[dict[str, Any]], dict[str, Any]]
_TRIES = 20  # random places for an implant; it is left out if each of them covers an annotation


class CopyPaste:
    """A dataset mapper that pastes one implant into some of the images that another mapper returns.

    The implant comes augmented by its own mapper, out of a radiograph of the target's modality (told, or by the shape),
    where sizes are alike. It lands where it covers no annotation, so that nothing of the target is hidden; at its rim
    the two images blend. Without such a place the target stays as it is. Random numbers come from NumPy's
    global generator.

    Args:
        mapper: maps the target; it returns ``image`` and ``instances``.
        source_mapper: maps the source; it returns ``gt_masks`` as bit masks, too.
        sources: dataset dicts of one implant each, with all its annotations.
        prob: probability that an image gets an implant, in [0, 1].
        factors: (number of sources,) how often each is drawn, relative to the others.
        keep_masks: give the pasted instances their masks; the target's must be bit masks then.

    Raises:
        ValueError: ``prob`` is not from 0 to 1.
    """

    def __init__(
        self,
        mapper: Mapper,
        source_mapper: Mapper,
        sources: list[dict[str, Any]],
        *,
        prob: float,
        factors: np.ndarray,
        keep_masks: bool,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"INPUT.COPY_PASTE_PROB must be from 0 to 1; found {prob}")
        self.mapper = mapper
        self.source_mapper = source_mapper
        self.sources = sources
        self.prob = prob
        self.keep_masks = keep_masks
        modalities = np.array([_modality(source) for source in sources])
        self.probabilities = {
            modality: np.where(modalities == modality, factors, 0.0) / factors[modalities == modality].sum()
            for modality in np.unique(modalities).tolist()
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, and paste an implant into the result or not."""
        target = self.mapper(dataset_dict)
        probabilities = self.probabilities.get(_modality(dataset_dict))
        if np.random.rand() >= self.prob or probabilities is None:
            return target
        source = self.source_mapper(self.sources[np.random.choice(len(self.sources), p=probabilities)])
        return paste(target, source, self.keep_masks)


def add_copy_paste(cfg: CfgNode, mapper: Mapper, dataset_dicts: list[dict[str, Any]]) -> Mapper:
    """Let a mapper paste implants as ``INPUT.COPY_PASTE_PROB`` says; with 0 it is returned as it is.

    Implants with rare categories are drawn more often by ``DATALOADER.REPEAT_THRESHOLD``, as images are by
    Detectron2's ``RepeatFactorTrainingSampler``.

    Args:
        cfg: with the keys of ``add_implantdet_config``.
        mapper: maps training images.
        dataset_dicts: the training set; its annotations with masks and ``implant_id`` are the source.

    Raises:
        ValueError: no implant can be copied, masks are to be trained on in a form that cannot be pasted, images are
            cropped to a number of pixels, or the probability is not from 0 to 1.
    """
    if cfg.INPUT.COPY_PASTE_PROB == 0:
        return mapper
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
        raise ValueError(
            f"INPUT.MASK_FORMAT is '{cfg.INPUT.MASK_FORMAT}', but masks that INPUT.COPY_PASTE_PROB "
            f"{cfg.INPUT.COPY_PASTE_PROB} pastes are bit masks: set INPUT.MASK_FORMAT bitmask"
        )
    sources = implants_of(dataset_dicts)
    if not sources:
        raise ValueError(
            f"INPUT.COPY_PASTE_PROB is {cfg.INPUT.COPY_PASTE_PROB}, but no implant of the {len(dataset_dicts)} "
            "training images has an 'implant_id' and a 'segmentation' in each annotation: set INPUT.COPY_PASTE_PROB 0"
        )
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        sources, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    with_masks = cfg.clone()
    with_masks.defrost()
    with_masks.MODEL.MASK_ON, with_masks.INPUT.MASK_FORMAT = True, "bitmask"
    if cfg.INPUT.CROP.ENABLED:  # it would cut implants off; without it, they come as large as those of the target
        share = _share_of_crop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
        with_masks.INPUT.CROP.ENABLED = False
        with_masks.INPUT.MIN_SIZE_TRAIN = tuple(round(size / share) for size in cfg.INPUT.MIN_SIZE_TRAIN)
        with_masks.INPUT.MAX_SIZE_TRAIN = round(cfg.INPUT.MAX_SIZE_TRAIN / share)
    source_mapper = RadiographMapper(with_masks, is_train=True)
    return CopyPaste(
        mapper,
        source_mapper,
        sources,
        prob=cfg.INPUT.COPY_PASTE_PROB,
        factors=factors.double().numpy(),
        keep_masks=bool(cfg.MODEL.MASK_ON),
    )


def _modality(dataset_dict: dict[str, Any]) -> str:
    """As the mapper sees it, which enlarges panoramics."""
    shape = dataset_dict.get("height", 1), dataset_dict.get("width", 1)
    return str(dataset_dict.get("modality") or modality_by_shape(shape))


def _share_of_crop(kind: str, size: Sequence[float]) -> float:
    """Mean share of an image's side that Detectron2's ``RandomCrop`` leaves."""
    shares = {"relative": np.mean(size), "relative_range": (np.mean(size) + 1) / 2}
    if kind not in shares:
        raise ValueError(
            f"INPUT.CROP.TYPE is '{kind}', but pasted implants are scaled as crops of a share of the image are: set "
            f"INPUT.CROP.TYPE to one of {', '.join(shares)}, or INPUT.COPY_PASTE_PROB 0"
        )
    return float(shares[kind])


def implants_of(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dataset dict per implant of which every annotation has a mask, with the annotations of this implant only.

    Implants that the frame cuts off are left out: pasted, they would end where no frame is.
    """
    implants = []
    for record in dataset_dicts:
        by_id: dict[int, list[dict[str, Any]]] = {}
        for annotation in record.get("annotations", ()):
            if "implant_id" in annotation:
                by_id.setdefault(annotation["implant_id"], []).append(annotation)
        implants += [
            record | {"annotations": annotations}
            for annotations in by_id.values()
            if all("segmentation" in annotation for annotation in annotations)
            and not any(touches_frame(annotation, record) for annotation in annotations)
        ]
    return implants


def paste(target: dict[str, Any], source: dict[str, Any], keep_masks: bool) -> dict[str, Any]:
    """Paste what the masks of ``source`` cover into ``target``, at a random place that is free.

    Args:
        target: mapped dataset dict.
        source: mapped dataset dict with ``gt_masks`` as bit masks.
        keep_masks: give the pasted instances their masks.

    Returns:
        A new dataset dict; ``target`` itself if the implant has no pixels or finds no place.
    """
    instances = source["instances"]
    if len(instances) == 0 or not instances.gt_masks.tensor.any():
        return target
    masks = instances.gt_masks.tensor
    rows, columns = masks.any(0).any(1).nonzero().flatten(), masks.any(0).any(0).nonzero().flatten()
    window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    masks = masks[:, window[0], window[1]]
    place = _free_place(target["instances"], masks.shape[1], masks.shape[2])
    if place is None:
        return target
    y, x = place
    into = (slice(y, y + masks.shape[1]), slice(x, x + masks.shape[2]))

    image = target["image"].clone()
    # A rim of one pixel in which both images mix, as a detector's blur leaves it; beyond the window is no implant.
    alpha = torch.from_numpy(cv2.blur(masks.any(0).numpy().astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT))
    patch = source["image"][:, window[0], window[1]]
    blended = alpha * patch + (1 - alpha) * image[:, into[0], into[1]]
    image[:, into[0], into[1]] = blended.to(image.dtype)

    pasted = Instances(target["instances"].image_size)
    shift = torch.tensor([x - window[1].start, y - window[0].start] * 2)
    pasted.gt_boxes = Boxes(instances.gt_boxes.tensor + shift)
    pasted.gt_boxes.clip(pasted.image_size)
    pasted.gt_classes = instances.gt_classes
    if target["instances"].has("gt_implants"):
        others = target["instances"].gt_implants
        pasted.gt_implants = torch.full_like(pasted.gt_classes, int(others.max()) + 1 if len(others) else 0)
    if keep_masks:
        canvas = torch.zeros(len(masks), *image.shape[1:], dtype=torch.bool)
        canvas[:, into[0], into[1]] = masks
        pasted.gt_masks = BitMasks(canvas)
    there = target["instances"]
    # Without annotations, Detectron2's instances lack the field of the masks; and masks may not be asked for.
    kept = {name: value for name, value in there.get_fields().items() if pasted.has(name)}
    together = Instances.cat([Instances(there.image_size, **kept), pasted]) if len(there) else pasted
    return target | {"image": image, "instances": together}


def _free_place(instances: Instances, height: int, width: int) -> tuple[int, int] | None:
    """Top left corner (y, x) of a window of this size in the image that covers no annotation."""
    free_height, free_width = instances.image_size[0] - height, instances.image_size[1] - width
    if free_height < 0 or free_width < 0:
        return None
    corners = np.random.randint(0, [free_height + 1, free_width + 1], (_TRIES, 2))
    windows = Boxes(torch.from_numpy(np.c_[corners[:, ::-1], corners[:, ::-1] + [width, height]]))
    free = (pairwise_iou(windows, instances.gt_boxes) == 0).all(dim=1).nonzero().flatten().tolist()
    return tuple(corners[free[0]].tolist()) if free else None
