"""Implants that are small in a picture, enlarged under it: each as it is and, to the right, with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from implantdet.report.implant_overlay import draw_implant
from implantdet.report.overlay import BACKGROUND, GAP, HEIGHT, LINE, TEXT, font

SMALL = 120  # implants shorter than this in the picture, in its pixels, are enlarged
SIDE = 320  # height of a close-up, in pixels
MARGIN = 0.2  # what is shown around an implant, as a share of its longer side
MAX_ENLARGEMENT = 8  # of a pixel of the radiograph


def add_close_ups(picture: Image.Image, image: np.ndarray, implants: Sequence[dict[str, Any]]) -> Image.Image:
    """A picture with close-ups under it of the implants that are small there.

    A panoramic radiograph shows an implant in a few dozen pixels: too few to tell a thread by eye.

    Args:
        picture: with the radiograph as high as ``open_panel`` makes it.
        image: the radiograph, H×W, uint8.
        implants: those that are drawn there, as in ``implants.json``.

    Returns:
        The same picture, or a higher one of the same width.
    """
    scale = HEIGHT / image.shape[0]
    small = [implant for implant in implants if scale * max(_size(implant["box"])) < SMALL]
    if not small:
        return picture
    tiles = [_close_up(image, implant, picture.width) for implant in sorted(small, key=lambda each: each["number"])]
    places, left, top = [], 0, picture.height + GAP
    for tile in tiles:
        if left and left + tile.width > picture.width:
            left, top = 0, top + tile.height + GAP
        places.append((left, top))
        left += tile.width + 4 * GAP
    higher = Image.new("RGB", (picture.width, top + LINE + SIDE), BACKGROUND)
    higher.paste(picture, (0, 0))
    for tile, place in zip(tiles, places, strict=True):
        higher.paste(tile, place)
    return higher


def _close_up(image: np.ndarray, implant: dict[str, Any], max_width: int) -> Image.Image:
    """An implant twice, under its number: as it is, and with its parts."""
    margin = MARGIN * max(_size(implant["box"]))
    x0, y0, x1, y1 = (round(v + s * margin) for v, s in zip(implant["box"], (-1, -1, 1, 1), strict=True))
    x0, y0 = max(0, min(x0, image.shape[1] - 1)), max(0, min(y0, image.shape[0] - 1))
    x1, y1 = min(image.shape[1], max(x1, x0 + 1)), min(image.shape[0], max(y1, y0 + 1))
    scale = min(MAX_ENLARGEMENT, SIDE / (y1 - y0), (max_width - GAP) / 2 / (x1 - x0))
    size = (max(1, round(scale * (x1 - x0))), max(1, round(scale * (y1 - y0))))
    plain = Image.fromarray(image[y0:y1, x0:x1]).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    marked = plain.copy()
    draw_implant(
        ImageDraw.Draw(marked),
        implant,
        lambda points: tuple(round(scale * (v - (x0, y0)[k % 2])) for k, v in enumerate(points)),
    )
    tile = Image.new("RGB", (2 * size[0] + GAP, LINE + SIDE), BACKGROUND)
    ImageDraw.Draw(tile).text((2, 1), str(implant["number"]), fill=TEXT, font=font(15))
    for column, half in enumerate((plain, marked)):
        tile.paste(half, (column * (size[0] + GAP), LINE))
    return tile


def _size(box: Sequence[float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]
