"""Against levels written by hand, DICOM's own formulas, and the test files that come with pydicom."""

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from implantdet.data.dicom import header_of, read_dicom
from implantdet.data.idd import load_idd
from implantdet.data.images import find_radiographs, read_radiograph
from implantdet.data.importing import import_dataset
from implantdet.data.problems import DataError
from implantdet.data.unlabelled import image_folder_dicts

LEVELS = np.array([[0, 100, 2048], [4095, 7, 3000]], np.uint16)


def write(path, levels=LEVELS, bits=12, **tags):
    """A file of a radiograph, uncompressed; ``tags`` by keyword, None removes one."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    colours = levels.shape[2] if levels.ndim == 3 else 1
    defaults = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": "1.2.3",
        "Rows": levels.shape[0],
        "Columns": levels.shape[1],
        "SamplesPerPixel": colours,
        "PhotometricInterpretation": "MONOCHROME2" if colours == 1 else "RGB",
        "BitsAllocated": 8 * levels.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(levels.dtype.kind == "i"),
        "PixelData": levels.tobytes(),
    }
    if colours > 1:
        defaults["PlanarConfiguration"] = 0
    for key, value in (defaults | tags).items():
        setattr(file, key, value)
    file.save_as(path, enforce_file_format=True)
    return path


def test_grey_levels_come_as_they_were_written(tmp_path):
    for levels, bits in ((LEVELS, 12), (LEVELS, 16), (LEVELS.astype(np.uint8), 8)):
        found = read_radiograph(write(tmp_path / "a", levels, bits))
        assert found.dtype == levels.dtype
        np.testing.assert_array_equal(found, levels)


def test_what_is_stored_inverted_is_turned_round(tmp_path):
    np.testing.assert_array_equal(
        read_dicom(write(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")), 4095 - LEVELS
    )
    told = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "b", **told)), 4095 - LEVELS)
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "c", PresentationLUTShape="IDENTITY")), LEVELS)


def test_slope_and_window_are_applied(tmp_path):
    """PS3.3, C.11.1 and C.11.2.1.2.1: a window of 1001 levels round 1500.5 spans 1000 to 2000 of twice the levels."""
    levels = np.array([[0, 500, 750, 1000, 4000]], np.uint16)
    path = write(tmp_path / "a", levels, RescaleSlope=2, RescaleIntercept=0, WindowCenter=1500.5, WindowWidth=1001)
    out_of = 2 * 4095  # largest stored level, rescaled
    np.testing.assert_array_equal(read_dicom(path), [[0, 0, round(0.5 * out_of), out_of, out_of]])


def test_signed_levels_begin_at_0(tmp_path):
    levels = np.array([[-30, 0, 500]], np.int16)
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "a", levels)), [[0, 30, 530]])
    shifted = write(tmp_path / "b", RescaleSlope=1, RescaleIntercept=-50)
    np.testing.assert_array_equal(read_dicom(shifted), LEVELS)


def test_colours_become_grey_as_in_other_files(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    write(tmp_path / "a.dcm", colours, 8)
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.dcm"), read_radiograph(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_compressed_files_have_the_levels_of_the_plain_one(name):
    plain, compressed = (dcmread(get_testdata_file(f"MR_small{end}.dcm")) for end in ("", f"_{name}"))
    np.testing.assert_array_equal(compressed.pixel_array, plain.pixel_array)
    path = get_testdata_file(f"MR_small_{name}.dcm")
    np.testing.assert_array_equal(read_radiograph(path), read_radiograph(get_testdata_file("MR_small.dcm")))


def test_what_is_compressed_here_is_read_again(tmp_path):
    file = dcmread(write(tmp_path / "a"))
    file.compress(RLELossless, generate_instance_uid=False)
    file.save_as(tmp_path / "b")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "b"), LEVELS)


def test_what_is_no_radiograph_is_told(tmp_path):
    frames = write(tmp_path / "a", np.zeros((4, 3), np.uint16), Rows=2, NumberOfFrames=2)
    with pytest.raises(DataError, match=r"a: unreadable image: 2 frames; expected one radiograph"):
        read_radiograph(frames)
    wide = write(tmp_path / "b", RescaleSlope=20, RescaleIntercept=-50)
    with pytest.raises(DataError, match=r"b: unreadable image: grey levels that span 81900; expected up to 65535"):
        read_radiograph(wide)
    cut = write(tmp_path / "c")
    cut.write_bytes(cut.read_bytes()[:-4])
    for path in (cut, get_testdata_file("reportsi.dcm")):
        with pytest.raises(DataError, match="unreadable image"):
            read_radiograph(path)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, (None, None)),
        ({"PixelSpacing": [0.05, 0.05], "Modality": "IO"}, (0.05, "periapical")),
        ({"PixelSpacing": [0.1, 0.2], "Modality": "DX"}, ([[0.2, 0.0], [0.0, 0.1]], None)),
        ({"ImagerPixelSpacing": [0.13, 0.13], "Modality": "PX"}, (0.13, "panoramic")),
        ({"ImagerPixelSpacing": [0.13, 0.13], "EstimatedRadiographicMagnificationFactor": 1.3}, (0.1, None)),
        ({"ImagerPixelSpacing": [0.13, 0.13], "PixelSpacing": [0.1, 0.1]}, (0.1, None)),
        ({"ImagerPixelSpacing": [0.13, 0.13], "EstimatedRadiographicMagnificationFactor": 0}, (0.13, None)),
        ({"PixelSpacing": [0, 0.1]}, (None, None)),
        ({"PixelSpacing": None}, (None, None)),
        ({"PixelSpacing": 0.1}, (None, None)),
    ],
)
def test_the_header_says_scale_and_modality(tmp_path, tags, expected):
    scale, modality = header_of(write(tmp_path / "a", **tags))
    assert modality == expected[1]
    assert scale is None if expected[0] is None else scale == pytest.approx(np.array(expected[0]))


def test_other_files_have_no_header(tmp_path):
    Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path / "absent"):
        assert header_of(path) == (None, None)


def test_folders_are_searched_for_dicom_files_of_any_name(tmp_path):
    for name in ("IM0001", "1.2.840.5", "a.DCM", "DICOMDIR"):
        write(tmp_path / name, Modality="PX")
    (tmp_path / "notes.txt").write_text("too short")
    (tmp_path / "b.dcm").write_text("no DICOM file: told when it is read")
    assert [path.name for path in find_radiographs(tmp_path)] == ["1.2.840.5", "IM0001", "a.DCM", "b.dcm"]
    assert [record.get("modality") for record in image_folder_dicts(tmp_path)] == ["panoramic"] * 3 + [None]


def test_an_import_takes_scale_and_modality_from_the_header(tmp_path):
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "a.dcm", np.zeros((40, 60), np.uint16), PixelSpacing=[0.1, 0.1], Modality="PX")
    (tmp_path / "src" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "src" / "classes.txt").write_text("ITI\n")
    import_dataset(tmp_path / "src", tmp_path / "out")
    (image,) = load_idd(tmp_path / "out")["images"]
    assert (image["width"], image["height"], image["mm_per_pixel"], image["modality"]) == (60, 40, 0.1, "panoramic")
