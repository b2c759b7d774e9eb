"""Read radiographs: 8- and 16-bit grey, DICOM, PNG, TIFF, JPEG and whatever else Pillow decodes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from implantdet.data.checks import PANORAMIC
from implantdet.data.dicom import SUFFIXES as DICOM_SUFFIXES
from implantdet.data.dicom import is_no_radiograph, looks_like_dicom, read_dicom
from implantdet.data.problems import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *DICOM_SUFFIXES)
# Detectors deliver 10, 12 or 14 bits in files of 16: the fewest bits that hold the brightest pixel are the full range.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF's tag; Pillow turns such files round at 8 bits, not at 16
_BIT_DEPTHS = (8, 10, 12, 14, 16)
PANORAMIC_SHAPE = 1.7  # width by height, of a panoramic; of intraoral sensors hardly any but that of long bitewings


def read_radiograph(path: str | Path) -> np.ndarray:
    """Decode an image to grey levels: DICOM as a viewer shows it, others with their EXIF orientation, as in Detectron2.

    Returns:
        (H, W) array of uint8, of uint16 for a file of 16-bit grey levels, or of float32 from 0 to 255 for DICOM.

    Raises:
        DataError: the file is missing, truncated, has several pages, or is no image of whole grey levels or colours.
    """
    try:
        if looks_like_dicom(path):
            return read_dicom(path)
        with Image.open(path) as image:
            if isinstance(image, TiffImageFile) and image.n_frames > 1:
                raise DataError(f"{path}: {image.n_frames} pages; expected one radiograph: save each page by itself")
            image.draft("L", None)  # JPEG only: decode brightness and leave the colours, which takes half the time
            upright = ImageOps.exif_transpose(image)
            if not upright.mode.startswith(("I", "F")):
                return np.asarray(upright.convert("L"))
            levels = np.asarray(upright)
            is_negative = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    except DataError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}; expected a file that may be read") from error
    except Exception as error:  # decoders raise whatever they stumble over
        raise DataError(f"{path}: unreadable image: {error}; repair or remove the file") from error
    if levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > np.iinfo(np.uint16).max:
        span = f"{levels.dtype} from {levels.min()} to {levels.max()}"
        raise DataError(f"{path}: grey levels of type {span}; expected whole numbers from 0 to 65535")
    return (full_range(levels) - levels if is_negative else levels).astype(np.uint16)


def find_radiographs(folder: str | Path) -> list[Path]:
    """All images in a folder and its subfolders, ordered by name: by their suffix, and DICOM files of any name.

    Hidden ones are left aside; so are, with a warning, folders that cannot be looked into, and DICOM files that are
    slices, photographs or documents.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; expected one with files that end in {', '.join(SUFFIXES)}")
    paths, others = [], []
    for place, folders, names in os.walk(folder, onerror=_warn):
        folders[:] = [name for name in folders if not is_hidden(PurePath(name))]
        for name in folders:
            if Path(place, name).is_symlink():  # it may lead in a circle
                warnings.warn(f"{Path(place, name)}: left aside, it is a link to a folder; give that", stacklevel=2)
        files = (Path(place, name) for name in names if not is_hidden(PurePath(name)))
        for path in filter(Path.is_file, files):
            is_dicom = looks_like_dicom(path)
            if is_dicom and is_no_radiograph(path):
                others.append(path)
            elif is_dicom or path.suffix.lower() in SUFFIXES:
                paths.append(path)
    if others:
        warnings.warn(
            f"{folder}: left aside {len(others)} DICOM files that are no radiographs by their modality, such as "
            f"{others[0]}",
            stacklevel=2,
        )
    if not paths:
        raise DataError(f"{folder}: no image; expected files that end in {', '.join(SUFFIXES)}")
    return sorted(paths)


def _warn(error: OSError) -> None:
    warnings.warn(f"{error.filename}: left aside, it cannot be looked into: {error.strerror}", stacklevel=3)


def is_hidden(path: PurePath) -> bool:
    """Whether a path below a folder is the file system's, never data: a Mac puts ``._a.png`` beside ``a.png``."""
    return any(part.startswith(".") for part in path.parts)


def modality_by_shape(shape: Sequence[int]) -> str | None:
    """``panoramic`` for a height and width that hardly any intraoral sensor has; None otherwise: nobody knows."""
    return PANORAMIC if shape[1] >= PANORAMIC_SHAPE * shape[0] else None


def to_float(levels: np.ndarray) -> np.ndarray:
    """Grey levels as float32 from 0 to 255, every level of a 16-bit image kept apart.

    Args:
        levels: (H, W) array of uint8, uint16, or float32 from 0 to 255.
    """
    if levels.dtype == np.uint8:
        return levels.astype(np.float32)
    return levels.astype(np.float32) * np.float32(255 / full_range(levels))


def full_range(levels: np.ndarray) -> int:
    """The brightest level that the bit depth of whole grey levels has, as far as these tell."""
    brightest = int(levels.max(initial=0))
    return next(2**bits - 1 for bits in _BIT_DEPTHS if brightest < 2**bits)
