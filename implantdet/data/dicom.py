"""Radiographs in DICOM files: grey levels as a viewer shows them, and what the header says of scale and modality.

pydicom and highdicom are imported where a DICOM file is read, since they load every decoder that is installed.
"""

from __future__ import annotations

import math
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
# Slices, photographs and documents, which exports of a patient hold too.
NO_RADIOGRAPHS = ("CT", "MR", "PT", "NM", "US", "ES", "GM", "SM", "XC", "DOC", "SR", "ECG")
INDEX = "DICOMDIR"  # lists other files, and is no image
MAGIC = b"DICM"  # after a preamble of 128 bytes (PS3.10, 7.1)
WINDOW = ("WindowCenter", "WindowWidth")
# Optional, and often there without a value, which means nothing.
OPTIONAL = (
    *("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", *WINDOW),
    *("VOILUTFunction", "VOILUTSequence", "PresentationLUTShape", "PixelPaddingValue"),
)
# By compression, pydicom's plugin: left to itself it takes GDCM, which a damaged file can make end the process.
PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pillow",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pillow",
}
SHAPES = {"MONOCHROME1": "INVERSE"}  # of files that do not tell it
MM_PER_PIXEL = (0.005, 0.5)  # of radiographs of teeth; exports without a scale write 1
MAGNIFICATION = (1.0, 3.0)


def looks_like_dicom(path: str | Path) -> bool:
    """Whether a file is a DICOM file, by what stands in it: devices name theirs as they like."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(128 + len(MAGIC))
    except OSError:  # whoever opens it next says so
        return False
    return start[128:] == MAGIC and Path(path).stem.upper() != INDEX


def read_dicom(path: str | Path) -> np.ndarray:
    """Grey levels as the file wants them shown: with its look-up tables and its window, and MONOCHROME1 turned round.

    Without a window, or with one of no width, more than 8 bits are stretched from the darkest to the brightest pixel.
    Padding is black.

    Returns:
        (H, W) array of float32 from 0 to 255.

    Raises:
        ValueError: the file holds several frames, or what is no number.
        Exception: whatever pydicom and highdicom stumble over; pydicom names the package that a compression needs.
    """
    import highdicom
    from pydicom import dcmread

    file = dcmread(path)
    for key in OPTIONAL:
        if key in file and file[key].is_empty:
            delattr(file, key)
    if not _has_window(file):
        for key in WINDOW:
            file.pop(key, None)
    for sequence in ("ModalityLUTSequence", "VOILUTSequence"):
        for table in file.get(sequence, ()):
            _make_readable(table)
    frames = int(file.get("NumberOfFrames", 1))
    if frames != 1:
        raise ValueError(f"{frames} frames; expected one radiograph")
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        file.decompress(decoding_plugin=PLUGINS.get(syntax, ""), generate_instance_uid=False)
    image = highdicom.Image.from_dataset(file, copy=False)
    levels = image.get_frame(
        1,
        apply_real_world_transform=False,
        apply_voi_transform=None,  # if there is one
        voi_output_range=(0.0, 255.0),
        apply_icc_profile=False,
    )
    if not np.isfinite(levels).all():
        raise ValueError(f"levels from {levels.min()} to {levels.max()}; expected numbers")
    if levels.ndim == 3:
        colours = levels if levels.max() <= 255 else levels / 256
        return np.asarray(Image.fromarray(colours.astype(np.uint8)).convert("L"), np.float32)
    levels = levels.astype(np.float32)
    is_padding = np.zeros(levels.shape, bool)
    if "PixelPaddingValue" in file:
        is_padding = file.pixel_array == file.PixelPaddingValue
        levels[is_padding] = levels.min(where=~is_padding, initial=levels.max())
    has_window = "WindowCenter" in file or "VOILUTSequence" in file
    if "ModalityLUTSequence" in file and "VOILUTSequence" in file and "WindowCenter" not in file:
        has_window = False  # highdicom joins two tables, but neither scales nor turns round what comes out
        if file.get("PresentationLUTShape", SHAPES.get(file.PhotometricInterpretation)) == "INVERSE":
            levels *= -1
    if not has_window and (file.BitsStored > 8 or levels.min() < 0 or levels.max() > 255):
        levels -= levels.min()
        levels *= 255 / (levels.max() or 1)
    levels[is_padding] = 0
    return levels.clip(0, 255)


def _make_readable(table: Dataset) -> None:
    """Describe a look-up table (PS3.3, C.11.1.1) so that highdicom reads it, which knows 8 and 16 bits alone."""
    from pydicom import DataElement
    from pydicom.config import IGNORE

    entries, first, bits = table.LUTDescriptor
    if 8 < bits < 16:
        bits = 16  # they are stored in words of 16, and are scaled from the least to the greatest
    told = [entries or 2**16, first, bits]  # 0: as many as its field cannot hold
    table.add(DataElement("LUTDescriptor", table["LUTDescriptor"].VR, told, validation_mode=IGNORE))


def _has_window(file: Dataset) -> bool:
    """Whether the first window shows anything (PS3.3, C.11.2.1.2): exporters write a width of 0."""
    if not all(key in file for key in WINDOW):
        return False
    width = float(np.atleast_1d(file.WindowWidth)[0])
    return width >= 1 if file.get("VOILUTFunction", "LINEAR") == "LINEAR" else width > 0


def is_no_radiograph(path: str | Path) -> bool:
    """Whether a DICOM file says that it is a slice, a photograph or a document."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality") in NO_RADIOGRAPHS
    except Exception:  # who reads the pixels tells why
        return False


def header_of(path: str | Path) -> tuple[Scale | None, str | None]:
    """What a DICOM file says of its radiograph; of any other file, nothing.

    Returns:
        Millimetres per pixel: calibrated, if the file is, else at the detector, less the estimated magnification if
        there is one. And the modality, ``panoramic`` or ``periapical``. None where it is not known, or not credible.
    """
    if not looks_like_dicom(path):
        return None, None
    from pydicom import dcmread

    try:
        file = dcmread(path, stop_before_pixels=True)
        modality = MODALITIES.get(str(file.get("Modality")))
    except Exception:  # a header that cannot be read says nothing; who reads the pixels tells why
        return None, None
    return _scale(file), modality


def _scale(file: Dataset) -> Scale | None:
    spacing, at_detector = (_numbers(file, key, 2, MM_PER_PIXEL) for key in ("PixelSpacing", "ImagerPixelSpacing"))
    # Equal ones were not calibrated (PS3.3, 10.7.1.1).
    if at_detector is not None and spacing in (None, at_detector):
        magnification = _numbers(file, "EstimatedRadiographicMagnificationFactor", 1, MAGNIFICATION) or (1.0,)
        spacing = tuple(value / magnification[0] for value in at_detector)
    if spacing is None:
        return None
    down, right = spacing
    return right if math.isclose(down, right, rel_tol=1e-3) else [[right, 0.0], [0.0, down]]


def _numbers(file: Dataset, key: str, count: int, limits: tuple[float, float]) -> tuple[float, ...] | None:
    """The numbers of a field, if it has so many, all of them within the limits."""
    try:
        value: Any = file.get(key)
        numbers = (float(value),) if count == 1 else tuple(float(item) for item in value)
    except Exception:  # no number, or no list of them: pydicom converts when a field is looked at
        return None
    credible = len(numbers) == count and all(limits[0] <= number <= limits[1] for number in numbers)
    return numbers if credible else None
