"""The paper's augmentations (section 4.3), for grey images of shape (H, W) with levels from 0 to 255.

Random numbers come from NumPy's global generator, as in Detectron2's own augmentations.
"""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image


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


def zoomed(cfg: CfgNode) -> CfgNode:
    """``cfg`` for panoramic radiographs: larger by ``INPUT.PANORAMIC_ZOOM``, or in crops of as much less of the image.

    Raises:
        ValueError: the zoom is not above 0.
    """
    zoom = cfg.INPUT.PANORAMIC_ZOOM
    if not zoom > 0:
        raise ValueError(f"INPUT.PANORAMIC_ZOOM must be above 0; found {zoom}")
    cfg = cfg.clone()
    cfg.defrost()
    sizes = cfg.INPUT
    sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST = round(zoom * sizes.MIN_SIZE_TEST), round(zoom * sizes.MAX_SIZE_TEST)
    # Of pre-training, whose crops all have the same number of pixels.
    sizes.MIN_CROP_AREA, sizes.MAX_CROP_AREA = (
        min(a / zoom**2, 1.0) for a in (sizes.MIN_CROP_AREA, sizes.MAX_CROP_AREA)
    )
    if not sizes.CROP.ENABLED:
        sizes.MIN_SIZE_TRAIN = tuple(round(zoom * size) for size in sizes.MIN_SIZE_TRAIN)
        sizes.MAX_SIZE_TRAIN = round(zoom * sizes.MAX_SIZE_TRAIN)
    elif sizes.CROP.TYPE.startswith("relative"):
        sizes.CROP.SIZE = [min(share / zoom, 1.0) for share in sizes.CROP.SIZE]
    else:  # pixels of the file
        sizes.CROP.SIZE = [max(round(pixels / zoom), 1) for pixels in sizes.CROP.SIZE]
    return cfg


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Resize by ``INPUT.MIN_SIZE_*`` and ``MAX_SIZE_*``; for training crop before that, then flip, turn, add noise."""
    if not is_train:
        return [SmoothResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    sizes = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    crop = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)] if cfg.INPUT.CROP.ENABLED else []
    return [
        *crop,
        SmoothResizeShortestEdge(*sizes),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=True, vertical=False),
        T.RandomFlip(cfg.INPUT.FLIP_PROB, horizontal=False, vertical=True),
        # Quarter turns of RotationTransform move pixels without interpolating them (tested).
        T.RandomApply(T.RandomRotation([-90, 90], sample_style="choice"), cfg.INPUT.ROT90_PROB),
        PixelNoise(cfg.INPUT.NOISE_FRACTION),
    ]
