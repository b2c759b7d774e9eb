import numpy as np
import pytest
from PIL import Image, ImageDraw

from implantdet.report.close_ups import SIDE, SMALL, add_close_ups
from implantdet.report.overlay import BACKGROUND, GAP, HEIGHT, LINE
from implantdet.taxonomy import COLOURS


def implant(box, number=1):
    parts = [{"third": "coronal", "box": box, "box_std": None}]
    return {"number": number, "box": box, "parts": parts, "axis": None}


def picture_of(image, width=1000):
    return Image.new("RGB", (width, HEIGHT + 2 * LINE), (1, 2, 3))


def test_implants_that_are_large_enough_need_none():
    image = np.zeros((HEIGHT, 500), np.uint8)
    picture = picture_of(image)
    assert add_close_ups(picture, image, []) is picture
    assert add_close_ups(picture, image, [implant([10, 10, 40, 10 + SMALL])]) is picture
    small = implant([10, 10, 40, 9 + SMALL])
    alone = add_close_ups(picture, image, [small])
    assert alone is not picture
    assert np.array_equal(add_close_ups(picture, image, [implant([100, 10, 200, 500], 2), small]), alone)


def test_a_close_up_shows_the_implant_as_it_is_and_with_its_boxes():
    """Ten times ten bright pixels, with two around them: 2 of each 14 pixels of the height are margin."""
    image = np.full((HEIGHT, 500), 40, np.uint8)
    image[100:110, 200:210] = 200
    picture = picture_of(image)
    found = np.asarray(add_close_ups(picture, image, [implant([200, 100, 210, 110])]))
    assert found.shape == (HEIGHT + 2 * LINE + GAP + LINE + SIDE, 1000, 3)
    assert (found[: picture.height] == (1, 2, 3)).all()
    side = 8 * 14  # no pixel is enlarged more than that
    tile = found[-SIDE : -SIDE + side]
    plain, marked = tile[:, :side], tile[:, side + GAP : 2 * side + GAP]
    assert (plain[32:80, 32:80] == 200).all()
    assert (plain[:3] == 40).all() and (plain[:, -3:] == 40).all()
    assert (marked[16, 20:92] == COLOURS["coronal"]).all()
    assert (tile[:, 2 * side + GAP :] == BACKGROUND).all()


def test_many_implants_fill_rows_in_the_order_of_their_numbers(monkeypatch):
    image = np.full((HEIGHT, 500), 40, np.uint8)
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, place, said, **how: written.append(said))
    many = [implant([10 * k, 50, 10 * k + 20, 90], number=30 - k) for k in range(20)]
    picture = add_close_ups(picture_of(image), image, many)
    assert written == [str(number) for number in range(11, 31)]
    # 40 pixels and 8 on either side in 320: 36 pixels wide, 205.7 enlarged, twice, and two tiles in each of ten rows.
    assert picture.size == (1000, HEIGHT + 2 * LINE + 10 * (LINE + SIDE + GAP))


@pytest.mark.parametrize("box", [[-30, -20, 5, 5], [495, 715, 560, 760], [0, 0, 500, 3], [600, 800, 610, 810]])
def test_boxes_at_and_beyond_the_frame(box):
    image = np.full((HEIGHT, 500), 40, np.uint8)
    picture = add_close_ups(picture_of(image), image, [implant(box), implant([10, 10, 20, 20])])
    assert picture.width == 1000 and picture.height > HEIGHT
