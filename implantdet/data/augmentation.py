"""The paper's augmentations (section 4.3), for grey images of shape (H, W) with levels from 0 to 255.

Random numbers come from NumPy's global generator, as in Detectron2's own augmentations.
"""

from __future__ import annotations

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


class ZoomedCrop(T.RandomCrop):
    """Detectron2's, but so many times smaller: in as many pixels, everything is as much larger.

    Args:
        crop_type, crop_size: of ``RandomCrop``.
        zoom: 1 or more.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float], zoom: float) -> None:
        super().__init__(crop_type, crop_size)
        self.zoom = zoom

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels, of an image of this height and width."""
        height, width = super().get_crop_size(image_size)
        return max(round(height / self.zoom), 1), max(round(width / self.zoom), 1)


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
    crop = [ZoomedCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, zoom)] if cfg.INPUT.CROP.ENABLED else []
    left = 1.0 if crop else zoom
    sizes = tuple(round(left * size) for size in cfg.INPUT.MIN_SIZE_TRAIN), round(left * cfg.INPUT.MAX_SIZE_TRAIN)
    return [
        *crop,
        SmoothResizeShortestEdge(*sizes, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=True, vertical=False),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=False, vertical=True),
        # Quarter turns of RotationTransform move pixels without interpolating them (tested).
        T.RandomApply(T.RandomRotation([-90, 90], sample_style="choice"), cfg.INPUT.ROT90_PROB),
        PixelNoise(cfg.INPUT.NOISE_FRACTION),
    ]
