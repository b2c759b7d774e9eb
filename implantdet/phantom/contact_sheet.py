"""Contact sheets of a dataset folder: plain images, and the same with boxes, axes and names."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from implantdet.data.idd import IMAGES, load_idd
from implantdet.phantom.arrays import Array
from implantdet.taxonomy import COLOURS

GAP = 4
FONT_SCALE = 0.4


def contact_sheet(
    root: str | Path, *, grid: tuple[int, int] = (3, 5), tile: tuple[int, int] = (240, 240), boxes: bool = False
) -> Array:
    """Tile evenly chosen images of a dataset folder.

    Args:
        root: dataset folder.
        grid: rows and columns of the sheet.
        tile: height and width of one image on the sheet, in pixels.
        boxes: draw boxes of thirds and implants, and name the product line.

    Returns:
        [H, W, 3] BGR.
    """
    rows, columns = grid
    content = load_idd(root)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    images = content["images"]
    chosen = [images[int(i)] for i in np.linspace(0, len(images) - 1, min(columns * rows, len(images)))]
    sheet = np.full((rows * (tile[0] + GAP) - GAP, columns * (tile[1] + GAP) - GAP, 3), 255, np.uint8)
    categories = {category["id"]: category for category in content["categories"]}
    for index, image in enumerate(chosen):
        picture = cv2.imread(str(Path(root) / IMAGES / image["file_name"]), cv2.IMREAD_COLOR)
        if picture is None:
            raise OSError(f"{Path(root) / IMAGES / image['file_name']}: not a readable image")
        scale = (tile[1] / image["width"], tile[0] / image["height"])
        picture = cv2.resize(picture, tile[::-1], interpolation=cv2.INTER_AREA)
        if boxes:
            _draw(picture, by_image[image["id"]], categories, scale)
        top, left = index // columns * (tile[0] + GAP), index % columns * (tile[1] + GAP)
        sheet[top : top + tile[0], left : left + tile[1]] = picture
    return sheet


def _draw(
    picture: Array, annotations: list[dict[str, Any]], categories: dict[int, dict[str, Any]], scale: tuple[float, float]
) -> None:
    """Boxes of thirds and implants, and names, in place."""
    for annotation in annotations:
        category = categories[annotation["category_id"]]
        x, y, w, h = annotation["bbox"]
        low = round(x * scale[0]), round(y * scale[1])
        high = round((x + w) * scale[0]) - 1, round((y + h) * scale[1]) - 1
        colour = COLOURS[category["supercategory"]][::-1]  # OpenCV's order is BGR
        cv2.rectangle(picture, low, high, colour, 1)
    taken: list[tuple[int, int, int, int]] = []
    for annotation in annotations:
        category = categories[annotation["category_id"]]
        if category["supercategory"] == "system":
            name = annotation.get("product_line", category["name"])
            taken.append(_label(picture, name, annotation["bbox"], scale, taken))


def _label(
    picture: Array, name: str, bbox: list[float], scale: tuple[float, float], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Write a name on black above a box, or below it if another name is there; returns left, top, right, bottom."""
    (width, height), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)
    x, y, _, h = bbox
    left = int(np.clip(x * scale[0], 0, max(picture.shape[1] - width - 4, 0)))
    places = []
    for edge in (y * scale[1] - height - 7, (y + h) * scale[1] + 2):
        top = int(np.clip(edge, 0, picture.shape[0] - height - 5))
        places.append((left, top, left + width + 4, top + height + 5))
    free = [p for p in places if not any(p[0] < t[2] and t[0] < p[2] and p[1] < t[3] and t[1] < p[3] for t in taken)]
    place = (free or places)[0]
    cv2.rectangle(picture, place[:2], place[2:], (0, 0, 0), cv2.FILLED)
    at = (place[0] + 2, place[3] - 3)
    cv2.putText(picture, name, at, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, (255, 255, 255), 1, cv2.LINE_AA)
    return place


def write_sheets(root: str | Path, out: str | Path) -> list[Path]:
    """Write ``<folder name>.jpg`` and ``<folder name>_boxes.jpg`` into ``out``; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    wide = load_idd(root)["images"][0]["width"] > 1.5 * load_idd(root)["images"][0]["height"]
    layout: dict[str, Any] = {"grid": (3, 2), "tile": (300, 600)} if wide else {}
    paths = []
    for suffix, boxes in (("", False), ("_boxes", True)):
        path = out / f"{Path(root).name}{suffix}.jpg"
        cv2.imwrite(str(path), contact_sheet(root, boxes=boxes, **layout), [cv2.IMWRITE_JPEG_QUALITY, 85])
        paths.append(path)
    return paths
