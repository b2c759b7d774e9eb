"""A perceptual hash of radiographs that knows a picture again when it was flipped, turned or re-contrasted.

N: images. K: frequencies per side. The hash is the signs of the K×K lowest cosine coefficients of a thumbnail, after
its grey levels were added to their ranks: ranks undo every monotone change of contrast, but blow up the noise of flat
regions, which the levels hold down. Signs whiten the spectrum, so that threads and teeth count as much as the outline
of the jaw, which all radiographs share. A flip or a transposition changes the signs of known coefficients, so the
eight symmetries of the square cost no second look at the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import rankdata
from tqdm.contrib.concurrent import thread_map

from implantdet.data.images import read_radiograph
from implantdet.data.problems import DataError

_THUMBNAIL = 64  # pixels per side
_FREQUENCIES = 32  # K
# Agreement is the mean product of signs: 1 for the same hash, near 0 for unrelated pictures. On real_opg
# (datasets/README.md) copies of one picture agree by 0.97 or more, different panoramics by 0.47 or less.
THRESHOLD = 0.6
_ROWS = 256  # images compared at once, against all others


def picture_hash(levels: np.ndarray) -> np.ndarray:
    """Hash of one image.

    Args:
        levels: (H, W) grey levels, as ``read_radiograph`` returns them.

    Returns:
        (K, K) array of int8: 1, -1, or 0 for a coefficient that is exactly zero.
    """
    # The median takes out salt and pepper, which the paper's augmentation puts in.
    thumbnail = cv2.resize(cv2.medianBlur(levels, 3), (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    ranks = rankdata(thumbnail).reshape(thumbnail.shape)
    spectrum = cv2.dct(_standardized(thumbnail) + _standardized(ranks))[:_FREQUENCIES, :_FREQUENCIES]
    spectrum[np.abs(spectrum) < 1e-9] = 0  # rounding errors of symmetric pictures, and the mean
    return np.sign(spectrum).astype(np.int8)


def picture_hashes(paths: Sequence[str | Path], desc: str) -> list[np.ndarray | DataError]:
    """Hashes of image files, several of which are read at once, in their order; of one that cannot be read, the error.

    Args:
        paths: files.
        desc: what the progress bar says.
    """

    def hashed(path: str | Path) -> np.ndarray | DataError:
        try:
            return picture_hash(read_radiograph(path))
        except DataError as error:
            return error

    # Threads: decoding, which takes nearly all the time, does not hold Python's lock.
    return thread_map(hashed, paths, desc=desc, unit="image", disable=None)  # type: ignore[no-any-return]


def _standardized(values: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1; 0 for equal values."""
    centred = values - values.mean()
    return centred / (centred.std() or 1)


def same_pictures(hashes: np.ndarray, num_compared: int | None = None) -> list[tuple[int, int, float]]:
    """Pairs of images that show the same picture under some symmetry of the square, or its negative.

    Args:
        hashes: (N, K, K), from :func:`picture_hash`.
        num_compared: compare the first ones alone with all; None: every image with every other.

    Returns:
        (i, j, agreement) with i < j, where the agreement is at least :data:`THRESHOLD`.
    """
    flat = hashes.reshape(len(hashes), -1).astype(np.float32)
    # At most K² - 1 signs: the first coefficient is the mean, which is always zero.
    norms = np.sqrt(np.maximum(np.count_nonzero(flat, axis=1), 1)).astype(np.float32)
    flat /= norms[:, None]
    pairs = []
    stop = len(hashes) if num_compared is None else num_compared
    for start in range(0, stop, _ROWS):
        rows = hashes[start : min(start + _ROWS, stop)]
        agreement = np.zeros((len(rows), len(hashes)), np.float32)
        for variant in _symmetries(rows):
            np.maximum(agreement, np.abs(variant.reshape(len(rows), -1).astype(np.float32) @ flat.T), out=agreement)
        agreement /= norms[start : start + len(rows), None]
        for i, j in np.argwhere(agreement >= THRESHOLD).tolist():
            if start + i < j:
                pairs.append((start + i, j, round(float(agreement[i, j]), 3)))
    return pairs


def _symmetries(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """The hashes, (N, K, K), of the eight flips and quarter turns of each picture."""
    odd = (1 - 2 * (np.arange(hashes.shape[-1]) % 2)).astype(np.int8)  # a flip changes the sign of odd frequencies
    for upright in (hashes, hashes.transpose(0, 2, 1)):
        for rows in (np.ones_like(odd), odd):
            for columns in (np.ones_like(odd), odd):
                yield upright * rows[:, None] * columns
