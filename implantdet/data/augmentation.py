"""The paper's augmentations (section 4.3), for grey images of shape (H, W) with levels from 0 to 255.

Random numbers come from NumPy's global generator, as in Detectron2's own augmentations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image

MAX_ZOOM = 8  # of panoramic radiographs


class PixelNoiseTransform(Transform):
    """Replace the grey levels of given pixels; coordinates and masks stay as they are."""

    def __init__(self, positions: np.ndarray, levels: np.ndarray) -> None:
        """Store what to replace.

        Args:
            positions: (K,) indices into the flattened image.
            levels: (K,) new grey levels.
        """
        super().__init__()
        self.positions = positions
        self.levels = levels

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """A copy of ``img``, (H, W), with the noise in it."""
        noisy = img.copy()
        noisy.flat[self.positions] = self.levels
        return noisy

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """``coords``, unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """``segmentation``, unchanged."""
        return segmentation


class PixelNoise(T.Augmentation):
    """Salt and pepper on a random part of the pixels, from none to ``fraction`` of them.

    Raises:
        ValueError: ``fraction`` is not from 0 to 1.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        if not 0 <= fraction <= 1:
            raise ValueError(f"INPUT.NOISE_FRACTION must be from 0 to 1; found {fraction}")
        self.fraction = fraction

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the pixels and their levels, 0 or 255."""
        count = int(np.random.uniform(0, self.fraction) * image.size)
        # Drawn with replacement, which can only make the noise less than `count` pixels.
        positions = np.random.randint(0, image.size, count)
        return PixelNoiseTransform(positions, 255 * np.random.randint(0, 2, count))


class SmoothResizeTransform(T.ResizeTransform):
    """Detectron2's, but float images shrink as 8-bit ones do: by averaging, which spares threads from aliasing."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize ``img``, (H, W) of float32 or uint8."""
        method = Image.Resampling(self.interp if interp is None else interp)
        return np.array(Image.fromarray(img).resize((self.new_w, self.new_h), method))


class SmoothResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, with :class:`SmoothResizeTransform`."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the size."""
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            return SmoothResizeTransform(resize.h, resize.w, resize.new_h, resize.new_w, resize.interp)
        return resize


class RadiographCrop(T.RandomCrop):
    """Detectron2's, but at an annotation in some of the images, and smaller for radiographs that come enlarged.

    Args:
        crop_type, crop_size: of ``RandomCrop``.
        zoom: how many times smaller the crop is, 1 or more: in as many pixels, everything is as much larger.
        instance_prob: probability that the crop shows a box, drawn from all alike, in [0, 1]; of one that does not fit,
            its centre.

    Raises:
        ValueError: ``instance_prob`` is not from 0 to 1.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float], zoom: float, instance_prob: float) -> None:
        super().__init__(crop_type, crop_size)
        if not 0 <= instance_prob <= 1:
            raise ValueError(f"INPUT.CROP.INSTANCE_PROB must be from 0 to 1; found {instance_prob}")
        self.zoom = zoom
        self.instance_prob = instance_prob

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels, of an image of this height and width."""
        height, width = super().get_crop_size(image_size)
        return max(round(height / self.zoom), 1), max(round(width / self.zoom), 1)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """Draw the crop of (H, W) pixels; ``boxes``: (N, 4) corners in them, None or none: anywhere."""
        if boxes is None or len(boxes) == 0 or np.random.rand() >= self.instance_prob:
            return super().get_transform(image)
        height, width = image.shape[:2]
        x0, y0, x1, y1 = boxes[np.random.randint(len(boxes))].clip(0, [width, height] * 2)
        crop_height, crop_width = self.get_crop_size((height, width))
        y, x = _start(y0, y1, crop_height, height), _start(x0, x1, crop_width, width)
        return T.CropTransform(x, y, crop_width, crop_height)


def _start(low: float, high: float, crop: int, length: int) -> int:
    """Where a crop begins that shows the span from ``low`` to ``high`` or, if that is too long, its middle."""
    if high - low > crop - 1:  # whole pixels may not reach both ends
        low = high = (low + high) / 2
    first, last = max(math.ceil(high) - crop, 0), min(math.floor(low), length - crop)
    return int(np.random.randint(first, max(first, last) + 1))


def panoramic_zoom(cfg: CfgNode) -> float:
    """``INPUT.PANORAMIC_ZOOM``.

    Raises:
        ValueError: it is not from 1 to ``MAX_ZOOM``.
    """
    if not 1 <= cfg.INPUT.PANORAMIC_ZOOM <= MAX_ZOOM:
        raise ValueError(f"INPUT.PANORAMIC_ZOOM must be from 1 to {MAX_ZOOM}; found {cfg.INPUT.PANORAMIC_ZOOM}")
    return float(cfg.INPUT.PANORAMIC_ZOOM)


def build_augmentation(cfg: CfgNode, is_train: bool, zoom: float = 1.0) -> list[T.Augmentation]:
    """Resize by ``INPUT.MIN_SIZE_*`` and ``MAX_SIZE_*``; for training crop before that, then flip, turn, add noise.

    Args:
        cfg: with the keys of ``add_implantdet_config``.
        is_train: for training.
        zoom: images come this many times as large; where they are cropped, the crops are as much smaller.
    """
    if not is_train:
        largest = round(zoom * cfg.INPUT.MAX_SIZE_TEST)
        return [SmoothResizeShortestEdge(round(zoom * cfg.INPUT.MIN_SIZE_TEST), largest, "choice")]
    crop = cfg.INPUT.CROP
    crops = [RadiographCrop(crop.TYPE, crop.SIZE, zoom, crop.INSTANCE_PROB)] if crop.ENABLED else []
    left = 1.0 if crops else zoom
    sizes = tuple(round(left * size) for size in cfg.INPUT.MIN_SIZE_TRAIN), round(left * cfg.INPUT.MAX_SIZE_TRAIN)
    return [
        *crops,
        SmoothResizeShortestEdge(*sizes, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=True, vertical=False),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=False, vertical=True),
        # Quarter turns of RotationTransform move pixels without interpolating them (tested).
        T.RandomApply(T.RandomRotation([-90, 90], sample_style="choice"), cfg.INPUT.ROT90_PROB),
        PixelNoise(cfg.INPUT.NOISE_FRACTION),
    ]
