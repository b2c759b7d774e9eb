"""Smooth random fields, and the web of trabecular bone that is made from them."""

from __future__ import annotations

import cv2
import numpy as np

from implantdet.phantom.arrays import Array


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> Array:
    """Noise of unit variance whose grain is ``cell`` pixels (along y, along x) wide."""
    rows, columns = (max(2, round(size / grain)) for size, grain in zip(shape, cell, strict=True))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(1.25)


def web(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float], thickness: float) -> Array:
    """A net of bright struts, values in [0, 1]: the contour lines at zero of smooth noise.

    Args:
        rng: source of randomness.
        shape: rows and columns.
        cell: size of a mesh in pixels, along y and along x.
        thickness: width of the struts relative to the mesh, about 0.2 to 0.5.
    """
    field = smooth_noise(rng, shape, cell)
    return np.exp(-(field * field) * np.float32(1 / thickness**2))


def trabeculae(rng: np.random.Generator, shape: tuple[int, int], mesh: float, flat: float) -> Array:
    """Projected trabecular pattern of zero mean and unit variance: several webs that lie behind one another.

    Args:
        rng: source of randomness.
        shape: rows and columns.
        mesh: size of a mesh in pixels.
        flat: stretch of the meshes along x (above 1: horizontal struts prevail, as in the mandible).
    """
    total: Array = np.zeros(shape, np.float32)
    # Layers of the jaw lie behind one another; where one is dense the next may not be.
    for scale, weight in ((1.0, 1.0), (0.7, 0.8), (0.85, 0.9), (1.5, 0.8)):
        size = max(mesh * scale, 1.6)
        layer = web(rng, shape, (size, size * flat), 0.6)
        patchy = smooth_noise(rng, shape, (4 * mesh, 4 * mesh * flat))
        patchy *= np.float32(0.45)
        patchy += np.float32(1)
        layer *= patchy
        total += np.float32(weight) * layer
    total -= total.mean()
    total = cv2.GaussianBlur(total, (0, 0), max(0.12 * mesh, 0.3))
    return total * np.float32(1 / (total.std() + 1e-6))
