import os

import numpy as np
import pytest
from foreign import picture
from PIL import Image

from implantdet.data.images import find_radiographs, read_radiograph, to_float
from implantdet.data.problems import DataError

GREY = picture(1)
GREY16 = (GREY.astype(np.uint16) << 8) + picture(2)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_8_bit_grey_levels_are_read_exactly(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    levels = read_radiograph(tmp_path / f"a.{suffix}")
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_levels_are_read_exactly(tmp_path, suffix):
    Image.fromarray(GREY16).save(tmp_path / f"a.{suffix}")
    levels = read_radiograph(tmp_path / f"a.{suffix}")
    assert levels.dtype == np.uint16
    np.testing.assert_array_equal(levels, GREY16)


def test_jpeg_and_colours_become_grey(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.jpg", quality=95)
    Image.merge("RGB", [Image.fromarray(GREY)] * 3).save(tmp_path / "rgb.jpg", quality=95)
    Image.merge("RGBA", [Image.fromarray(GREY)] * 4).save(tmp_path / "rgba.png")
    for name, tolerance in (("grey.jpg", 8), ("rgb.jpg", 8), ("rgba.png", 0)):
        levels = read_radiograph(tmp_path / name)
        assert levels.dtype == np.uint8
        np.testing.assert_allclose(levels.astype(int), GREY, atol=tolerance)


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "PNG"}])
def test_no_truncation_goes_unnoticed(tmp_path, options):
    """A file cut short is an error, or all of its pixels are there (a PNG without its last, empty chunk)."""
    path = tmp_path / "a"
    Image.fromarray(GREY).save(path, **options)
    content, whole = path.read_bytes(), read_radiograph(path)
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="unreadable image"):
            read_radiograph(path)
    for length in range(len(content) - 25, len(content)):
        path.write_bytes(content[:length])
        try:
            levels = read_radiograph(path)
        except DataError:
            continue
        np.testing.assert_array_equal(levels, whole)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    for path, why in ((tmp_path / "a.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=f"cannot be opened: {why}.*; expected a file that may be read"):
            read_radiograph(path)


@pytest.mark.parametrize("levels", [GREY, GREY16], ids=["8 bits", "16 bits"])
def test_tiff_whose_white_is_zero_is_turned_round(tmp_path, levels):
    stored = levels if levels.dtype == np.uint8 else 65535 - levels  # of 8 bits, Pillow stores what it was not given
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.tif"), levels)


def test_float_images_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="grey levels of type float32"):
        read_radiograph(tmp_path / "a.tif")


def test_levels_of_dicom_files_are_floats_already():
    levels = np.array([[0, 0.25, 13.7, 255]], np.float32)
    np.testing.assert_array_equal(to_float(levels), levels)


def test_8_bit_levels_keep_their_values_as_float():
    np.testing.assert_array_equal(to_float(GREY), GREY.astype(np.float32))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_levels_fill_0_to_255_without_loss(bits):
    levels = np.arange(2**bits, dtype=np.uint16).reshape(2 ** (bits - 5), 32)
    scaled = to_float(levels)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert len(np.unique(scaled)) == 2**bits, "every level is kept apart"
    np.testing.assert_allclose(scaled, levels * (255 / (2**bits - 1)), rtol=1e-6)


def test_black_16_bit_image_stays_black():
    assert to_float(np.zeros((3, 4), np.uint16)).max() == 0


def test_hidden_files_are_no_radiographs(tmp_path):
    for name in ("a.png", "._a.png", ".thumbnails/a.png", "b/c.PNG", "b/.cache/c.png"):
        (tmp_path / ".data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / ".data" / name)
    found = find_radiographs(tmp_path / ".data")  # the folder itself may be hidden
    assert [path.relative_to(tmp_path / ".data").as_posix() for path in found] == ["a.png", "b/c.PNG"]


def test_a_link_to_a_folder_is_told(tmp_path):
    """It may lead in a circle; silence would leave a year of radiographs out."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "data").mkdir()
    for folder in ("archive", "data"):
        Image.fromarray(GREY).save(tmp_path / folder / "a.png")
    (tmp_path / "data/2023").symlink_to(tmp_path / "archive")
    with pytest.warns(UserWarning, match=r"data/2023: left aside, it is a link to a folder"):
        assert find_radiographs(tmp_path / "data") == [tmp_path / "data/a.png"]


def test_pages_of_a_tiff_are_not_passed_over(tmp_path):
    pages = [Image.fromarray(picture(seed)) for seed in (1, 2, 3)]
    pages[0].save(tmp_path / "series.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"series\.tif: 3 pages; expected one radiograph: save each page by itself$"):
        read_radiograph(tmp_path / "series.tif")


def test_folders_that_cannot_be_looked_into_are_told(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png", ".hidden/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith(("b", ".hidden")):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"b: left aside, it cannot be looked into: Permission denied") as caught:
        assert [path.name for path in find_radiographs(tmp_path)] == ["1.png"]
    assert len(caught) == 1
