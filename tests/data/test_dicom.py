"""Against levels written by hand, DICOM's own formulas, and the test files that come with pydicom."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from foreign import HEIGHT, WIDTH, coco_content
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
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


def stretched(levels):
    low, high = int(levels.min()), int(levels.max())
    return (levels.astype(float) - low) * 255 / (high - low)


def test_8_bits_come_as_they_were_written_and_more_are_stretched(tmp_path):
    bytes_ = LEVELS.astype(np.uint8)
    np.testing.assert_array_equal(read_radiograph(write(tmp_path / "a", bytes_, 8)), bytes_)
    signed = np.array([[-30, 0, 500]], np.int16)
    for levels, bits in ((LEVELS, 12), (LEVELS, 16), (LEVELS // 8 + 30, 12), (LEVELS // 20, 12), (signed, 16)):
        found = read_radiograph(write(tmp_path / "a", levels, bits))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, stretched(levels), rtol=1e-6)
    for told in ({"RescaleSlope": 2, "RescaleIntercept": 0}, {"RescaleSlope": 1, "RescaleIntercept": -50}):
        found = read_dicom(write(tmp_path / "a", bytes_, 8, **told))
        np.testing.assert_allclose(found, stretched(bytes_), rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "b", np.full((2, 3), 700, np.uint16))), 0)


def test_what_is_stored_inverted_is_turned_round(tmp_path):
    levels = LEVELS // 2  # without the largest level: not the pixels say where white is
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}
    for told in ({}, {"PresentationLUTShape": "INVERSE"}, {"PresentationLUTShape": None}):
        found = read_dicom(write(tmp_path / "a", levels, **window, **told))
        np.testing.assert_allclose(found, 255 - levels.astype(float) * 255 / 4095, atol=1e-3)
    plain = read_dicom(write(tmp_path / "b", levels, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(plain, 255 - stretched(levels), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", range(9, 17))
def test_a_window_is_white_at_its_end_whatever_the_depth(tmp_path, bits):
    top = 2**bits - 1
    levels = np.array([[0, top // 3, top]], np.uint16)
    found = read_dicom(write(tmp_path / "a", levels, bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits))
    np.testing.assert_allclose(found, levels * (255 / top), atol=1e-3)
    dark = read_dicom(write(tmp_path / "a", levels // 9, bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits))
    np.testing.assert_allclose(dark, levels // 9 * (255 / top), atol=1e-3)


def test_slope_and_window_are_applied(tmp_path):
    """PS3.3, C.11.1 and C.11.2.1.2.1: a window of 1001 levels round 1500.5 spans 1000 to 2000 of twice the levels."""
    levels = np.array([[0, 500, 750, 1000, 4000]], np.uint16)
    window = {"WindowCenter": 1500.5, "WindowWidth": 1001}
    found = read_dicom(write(tmp_path / "a", levels, RescaleSlope=2, RescaleIntercept=0, **window))
    np.testing.assert_allclose(found, [[0, 0, 127.5, 255, 255]], atol=0.2)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    negative = read_dicom(write(tmp_path / "b", LEVELS, RescaleSlope=-1, RescaleIntercept=4096, **window))
    np.testing.assert_allclose(negative, (4096 - LEVELS.astype(float)).clip(0, 4095) * 255 / 4095, atol=0.2)
    empty = {"RescaleSlope": None, "RescaleIntercept": None, "VOILUTFunction": None, "NumberOfFrames": None}
    np.testing.assert_allclose(read_dicom(write(tmp_path / "c", **empty, **window)), LEVELS * (255 / 4095), atol=1e-3)


def test_the_first_window_is_shown_whatever_the_second_is(tmp_path):
    one = read_dicom(write(tmp_path / "a", WindowCenter=1500, WindowWidth=1000))
    both = read_dicom(write(tmp_path / "b", WindowCenter=[1500, 0], WindowWidth=[1000, 0]))
    np.testing.assert_array_equal(both, one)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 1500, "WindowWidth": 0.5},
        {"WindowCenter": 1500, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [1500, 1000], "WindowWidth": [0, 0]},
        {"WindowCenter": 1500},
        {"WindowWidth": 1500},
    ],
    ids=str,
)
def test_a_window_of_no_width_is_none(tmp_path, window, photometric):
    plain = read_dicom(write(tmp_path / "a", PhotometricInterpretation=photometric))
    found = read_dicom(write(tmp_path / "b", PhotometricInterpretation=photometric, **window))
    np.testing.assert_array_equal(found, plain)


def lut(entries, bits, first=0):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first, bits])
    table.add_new("LUTData", "US", entries)
    return table


def test_look_up_tables_are_applied(tmp_path):
    entries = [round(65535 * (level / 4095) ** 2) for level in range(4096)]
    found = read_dicom(write(tmp_path / "a", VOILUTSequence=[lut(entries, 16)]))
    np.testing.assert_allclose(found, 255 * (LEVELS / 4095) ** 2, atol=0.6)


@pytest.mark.parametrize("bits", [10, 12, 15])
def test_tables_of_all_depths_are_shown_as_pydicom_shows_them(tmp_path, bits):
    entries = [(2**bits - 1) - round((2**bits - 1) * (level / 4095) ** 0.5) for level in range(4096)]  # a negative
    path = write(tmp_path / "a", VOILUTSequence=[lut(entries, bits)], WindowCenter=2048, WindowWidth=4096)
    expected = apply_voi_lut(LEVELS, dcmread(path)) * (255 / (2**bits - 1))
    np.testing.assert_allclose(read_dicom(path), expected, atol=1e-3)


def test_a_table_of_all_entries_that_16_bits_can_name(tmp_path):
    table = lut(list(range(65536)), 16)
    assert table.LUTDescriptor[0] == 0
    table.add_new("LUTData", "OW", np.arange(65536, dtype=np.uint16).tobytes())  # more than a list of numbers can hold
    levels = np.array([[0, 256, 65535]], np.uint16)
    found = read_dicom(write(tmp_path / "a", levels, 16, VOILUTSequence=[table]))
    np.testing.assert_allclose(found, [[0, 256 * 255 / 65535, 255]], atol=1e-3)


@pytest.mark.parametrize(
    ("told", "is_inverse"),
    [
        ({}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}, False),
    ],
)
def test_two_tables_one_after_the_other(tmp_path, told, is_inverse):
    halves = lut([level // 2 for level in range(4096)], 16)
    squares = lut([level**2 // 64 for level in range(2048)], 16)
    told = told | {"ModalityLUTSequence": [halves], "VOILUTSequence": [squares]}
    halves.ModalityLUTType = "US"
    path = write(tmp_path / "a", **told)
    file = dcmread(path)
    expected = stretched(apply_voi_lut(apply_modality_lut(LEVELS, file), file))
    np.testing.assert_allclose(read_dicom(path), 255 - expected if is_inverse else expected, atol=1e-3)


def test_padding_is_black_and_stretches_nothing(tmp_path):
    levels = np.array([[-2000, 0, 100, 400]], np.int16)
    found = read_dicom(write(tmp_path / "a", levels, 16, PixelPaddingValue=-2000))
    np.testing.assert_allclose(found, [[0, 0, 63.75, 255]], rtol=1e-6)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 7}
    np.testing.assert_allclose(
        read_dicom(write(tmp_path / "a", LEVELS + 7, **window))[0], [0, 107 * 255 / 4095, 2055 * 255 / 4095], atol=1e-3
    )
    inverted = np.array([[65535, 0, 4000]], np.uint16)
    told = {"PixelPaddingValue": 65535, "PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_allclose(read_dicom(write(tmp_path / "b", inverted, 16, **told)), [[0, 255, 0]])
    nothing = write(tmp_path / "c", np.full((2, 2), 9, np.uint16), PixelPaddingValue=9)
    np.testing.assert_array_equal(read_dicom(nothing), 0)


def test_colours_become_grey_as_in_other_files(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    write(tmp_path / "a.dcm", colours, 8)
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.dcm"), read_radiograph(tmp_path / "a.png"))


def test_palettes_are_looked_up():
    path = get_testdata_file("examples_palette.dcm")
    file = dcmread(path)
    colours = apply_color_lut(file.pixel_array, file)
    grey = np.asarray(Image.fromarray((colours >> 8).astype(np.uint8)).convert("L"), int)
    assert np.abs(read_radiograph(path) - grey).max() <= 1


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_compressed_files_have_the_levels_of_the_plain_one(name):
    plain = read_radiograph(get_testdata_file("MR_small.dcm"))
    np.testing.assert_array_equal(read_radiograph(get_testdata_file(f"MR_small_{name}.dcm")), plain)


def test_what_is_compressed_here_is_read_again(tmp_path):
    file = dcmread(write(tmp_path / "a"))
    file.compress(RLELossless, generate_instance_uid=False)
    file.save_as(tmp_path / "b")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "b"), read_radiograph(tmp_path / "a"))


def test_a_damaged_jpeg_is_no_end_of_the_process(tmp_path):
    """GDCM, which is installed with the tests, ends it."""
    content = bytearray(Path(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")).read_bytes())
    for place, byte in ((635, 235), (1250, 183), (1869, 157), (2152, 194)):
        content[place] = byte
    (tmp_path / "a").write_bytes(content)
    with suppress(DataError):
        assert read_radiograph(tmp_path / "a").shape == (100, 100)


def test_what_is_no_radiograph_is_told(tmp_path):
    frames = write(tmp_path / "a", np.zeros((4, 3), np.uint16), Rows=2, NumberOfFrames=2)
    with pytest.raises(DataError, match=r"a: unreadable image: 2 frames; expected one radiograph"):
        read_radiograph(frames)
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
        # Equal to the detector's, a spacing was not calibrated.
        (
            {
                "PixelSpacing": [0.13, 0.13],
                "ImagerPixelSpacing": [0.13, 0.13],
                "EstimatedRadiographicMagnificationFactor": 1.3,
            },
            (0.1, None),
        ),
        ({"PixelSpacing": [0, 0.1]}, (None, None)),
        ({"PixelSpacing": [1, 1]}, (None, None)),  # written by exports that know none
        ({"PixelSpacing": None}, (None, None)),
        ({"PixelSpacing": 0.1}, (None, None)),
        ({"PixelSpacing": [0.1, 0.1, 0.1]}, (None, None)),
        ({"Modality": ["PX", "OT"]}, (None, None)),
    ],
)
def test_the_header_says_scale_and_modality(tmp_path, tags, expected):
    scale, modality = header_of(write(tmp_path / "a", **tags))
    assert modality == expected[1]
    assert scale is None if expected[0] is None else scale == pytest.approx(np.array(expected[0]))


@pytest.mark.parametrize("spacing", [b"0,12\\0,12", b"far\\away ", b"1e400\\1e", b"0.1\\\\\\\\\\"])
def test_a_header_that_makes_no_sense_says_nothing(tmp_path, spacing):
    path = write(tmp_path / "a", PixelSpacing=[0.125, 0.25], Modality="IO")
    content = path.read_bytes()
    assert content.count(b"0.125\\0.25") == 1
    path.write_bytes(content.replace(b"0.125\\0.25", spacing.ljust(10)[:10]))
    assert header_of(path) == (None, "periapical")


def test_a_damaged_header_says_nothing(tmp_path):
    path = write(tmp_path / "a", PixelSpacing=[0.125, 0.25], Modality="IO")
    content, rng, unreadable = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(132, len(content), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            dcmread(path, stop_before_pixels=True).get("Modality")
        except Exception:
            unreadable += 1
            assert header_of(path) == (None, None)
        else:
            header_of(path)
    assert unreadable > 3


def test_other_files_have_no_header(tmp_path):
    Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path / "absent"):
        assert header_of(path) == (None, None)


def test_folders_are_searched_for_dicom_files_of_any_name(tmp_path):
    for name in ("IM0001", "1.2.840.5", "a.DCM", "dicomdir"):
        write(tmp_path / name, Modality="PX")
    (tmp_path / "notes.txt").write_text("too short")
    (tmp_path / "b.dcm").write_text("no DICOM file: told when it is read")
    assert [path.name for path in find_radiographs(tmp_path)] == ["1.2.840.5", "IM0001", "a.DCM", "b.dcm"]
    assert [record.get("modality") for record in image_folder_dicts(tmp_path)] == ["panoramic"] * 3 + [None]


def test_slices_and_photographs_in_a_folder_are_left_aside_with_a_warning(tmp_path):
    for name, modality in (("a", "IO"), ("b", "CT"), ("c", "CT"), ("d", "XC"), ("e", "DX"), ("f", None)):
        write(tmp_path / name, **({"Modality": modality} if modality else {}))
    with pytest.warns(UserWarning, match="left aside 3 DICOM files that are no radiographs .* such as .*b$"):
        assert [path.name for path in find_radiographs(tmp_path)] == ["a", "e", "f"]


@pytest.mark.parametrize(
    ("spacing", "told"),
    [([0.1, 0.1], {"mm_per_pixel": 0.1}), ([0.1, 0.2], {"mm_per_pixel_matrix": [[0.2, 0.0], [0.0, 0.1]]}), (None, {})],
)
def test_an_import_takes_scale_and_modality_from_the_header(tmp_path, spacing, told):
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "a.dcm", np.zeros((40, 60), np.uint16), PixelSpacing=spacing, Modality="PX")
    (tmp_path / "src" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "src" / "classes.txt").write_text("ITI\n")
    import_dataset(tmp_path / "src", tmp_path / "out")
    (image,) = load_idd(tmp_path / "out")["images"]
    assert (image["width"], image["height"], image["modality"]) == (60, 40, "panoramic")
    assert {key: image[key] for key in image if key.startswith("mm_per_pixel")} == told


@pytest.mark.parametrize("told", [{"mm_per_pixel": 0.2}, {"mm_per_pixel_matrix": [[0.2, 0.0], [0.0, 0.3]]}])
def test_what_a_record_says_goes_before_the_header(tmp_path, told):
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "a.dcm", np.zeros((HEIGHT, WIDTH), np.uint16), PixelSpacing=[0.1, 0.1], Modality="PX")
    content = coco_content()
    content["images"] = [content["images"][0] | told | {"file_name": "a.dcm", "modality": "periapical"}]
    content["annotations"] = content["annotations"][:2]
    (tmp_path / "src" / "_annotations.coco.json").write_text(json.dumps(content))
    import_dataset(tmp_path / "src", tmp_path / "out")
    (image,) = load_idd(tmp_path / "out")["images"]
    assert image["modality"] == "periapical"
    assert {key: image[key] for key in image if key.startswith("mm_per_pixel")} == told
