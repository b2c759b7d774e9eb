"""Small scenes with nothing random in them."""

import numpy as np

from implantdet.phantom.canvas import Canvas
from implantdet.phantom.frame import Frame
from implantdet.phantom.lines import default_lines
from implantdet.phantom.scene import Patient, PlacedImplant, View, view_matrix
from implantdet.phantom.solid import Solid
from implantdet.phantom.xray import Exposure
from implantdet.taxonomy import default_taxonomy

IDS = {category["name"]: category["id"] for category in default_taxonomy().coco_categories()}
NAMES = {number: name for name, number in IDS.items()}
SHOT = Exposure(8, 120, 230, 252, 0.03, 0.4, 1e6, 0.0, 0.0, 1.0, 0.0, 0.0)


def implant(title="ITI BL", x=20.0, y=5.0, angle=0.0, tilt=0.0, spin=0.0, diameter=4.1, length=10.0):
    line = next(line for line in default_lines() if line.title == title)
    return PlacedImplant(Solid(line, diameter, length), x, y, angle, tilt, spin, 0.5)


def patient(*implants):
    canvas = Canvas(0.0, -10.0, 40.0, 40.0, 0.1)
    canvas.tissue += np.float32(0.9)
    return Patient("periapical", canvas, implants, False, 0.9)


def view(mm=(0.1, 0.1), size=(400, 400), centre=(20.0, 10.0), lean=0.0, turn=0.0, half=None, upper=False):
    half = half or (size[1] / 2 + 2, size[0] / 2 + 2)
    frame = Frame((size[1] / 2, size[0] / 2), half, 0.0, turn, 0.0, 0.0)
    return View(view_matrix(centre, mm, lean, turn, upper, size), size, frame, SHOT, 0.0, 0.0, 90)


def named(annotations):
    return [NAMES[annotation["category_id"]] for annotation in annotations]
