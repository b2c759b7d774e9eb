"""Radiographs in DICOM files: grey levels as a viewer shows them, and what the header says of scale and modality.

pydicom is imported where a DICOM file is read, since it loads every decoder that is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from implantdet.data.checks import PANORAMIC, PERIAPICAL
from implantdet.structures import Scale

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
MODALITIES = {"PX": PANORAMIC, "IO": PERIAPICAL}  # DICOM's names (PS3.3, C.7.3.1.1.1); all others say nothing
INDEX = "DICOMDIR"  # lists other files, and is no image
MAGIC = b"DICM"  # after a preamble of 128 bytes (PS3.10, 7.1)
MAX_LEVEL = np.iinfo(np.uint16).max


def looks_like_dicom(path: str | Path) -> bool:
    """Whether a file is a DICOM file, by what stands in it: devices name theirs as they like."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(128 + len(MAGIC))
    except OSError:  # whoever opens it next says so
        return False
    return start[128:] == MAGIC and Path(path).name.upper() != INDEX


def read_dicom(path: str | Path) -> np.ndarray:
    """Grey levels with the file's modality, VOI and presentation look-up tables applied, air dark.

    Returns:
        (H, W) array of uint8 for pixels of up to 8 bits, else of uint16.

    Raises:
        ValueError: the file holds several frames, or levels that span more than 0 to 65535.
        Exception: whatever pydicom stumbles over; it names the package that a compression needs.
    """
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut

    file = dcmread(path)
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"{frames} frames; expected one radiograph")
    levels = file.pixel_array
    if file.SamplesPerPixel > 1:
        return np.asarray(Image.fromarray(levels).convert("L"))
    levels = apply_presentation_lut(apply_voi_lut(apply_modality_lut(levels, file), file), file)
    if file.PhotometricInterpretation == "MONOCHROME1" and "PresentationLUTShape" not in file:
        levels = levels.max() - levels
    levels = np.rint(levels.astype(float))
    levels -= min(levels.min(), 0)  # signed pixels: the lowest becomes 0
    if levels.max() > MAX_LEVEL:
        raise ValueError(f"grey levels that span {levels.max():g}; expected up to {MAX_LEVEL}")
    return levels.astype(np.uint8 if file.BitsStored <= 8 and levels.max() < 256 else np.uint16)


def header_of(path: str | Path) -> tuple[Scale | None, str | None]:
    """What a DICOM file says of its radiograph; of any other file, nothing.

    Returns:
        Millimetres per pixel, calibrated where the file is, else at the detector, less the estimated magnification if
        there is one; and the modality, ``panoramic`` or ``periapical``. None where it is not known.
    """
    if not looks_like_dicom(path):
        return None, None
    from pydicom import dcmread

    file = dcmread(path, stop_before_pixels=True)
    return _scale(file), MODALITIES.get(str(file.get("Modality")))


def _scale(file: Dataset) -> Scale | None:
    magnification = _positive([file.get("EstimatedRadiographicMagnificationFactor")], 1) or [1.0]
    calibrated, at_detector = (_positive(file.get(key), 2) for key in ("PixelSpacing", "ImagerPixelSpacing"))
    spacing = calibrated or (at_detector and [value / magnification[0] for value in at_detector])
    if spacing is None:
        return None
    down, right = spacing
    return right if math.isclose(down, right, rel_tol=1e-3) else [[right, 0.0], [0.0, down]]


def _positive(values: Any, count: int) -> list[float] | None:
    """``count`` numbers above 0, or None where anything else stands."""
    if not isinstance(values, Sequence) or len(values) != count or None in values:
        return None
    numbers = [float(value) for value in values]
    return numbers if all(math.isfinite(number) and number > 0 for number in numbers) else None
