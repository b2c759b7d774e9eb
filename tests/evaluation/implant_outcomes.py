"""Hand-made outcomes: upright implants of three thirds in a row, 20 × 60 pixels each, 50 pixels apart."""

from implantdet.assembly.known import KnownImplant
from implantdet.evaluation.implant_matching import ImageOutcome
from implantdet.structures import Assembly, Candidate, Evidence, Implant, Part, Ranking, Reading
from implantdet.taxonomy import THIRDS

AXES = {"coronal": "coronal.level", "middle": "middle.body", "apical": "apical.apex"}
VALUES = {"coronal.level": "bone", "middle.body": "straight", "apical.apex": "dome"}


def whole_box(column):
    return (50.0 * column, 10.0, 50.0 * column + 20, 70.0)


def third_box(column, third):
    x0, _, x1, _ = whole_box(column)
    top = 10.0 + 20 * THIRDS.index(third)
    return (x0, top, x1, top + 20)


def known(column, system="ITI", line=None, **values):
    """A true implant with all its thirds; ``coronal_level="tissue"`` replaces a value, None removes it."""
    boxes = {third: third_box(column, third) for third in THIRDS} | {"system": whole_box(column)}
    read = VALUES | {name.replace("_", ".", 1): value for name, value in values.items()}
    return KnownImplant(boxes, {axis: value for axis, value in read.items() if value}, system, line)


def part(column, third, detection, value=None, score=0.9):
    axis = AXES[third]
    reading = Reading(axis, value or VALUES[axis], score, detection)
    return Part(third, third_box(column, third), score, (reading,))


def inferred(column, third, shift=0.0):
    x0, y0, x1, y1 = third_box(column, third)
    return Part(third, (x0 + shift, y0, x1 + shift, y1), 0.0, box_std=(1.0, 1.0, 1.0, 1.0))


def ranking(*systems, lines=(), system_set=None, line_set=None, unknown=False):
    """From (name, probability) pairs, most probable first; equal probabilities tie."""
    return Ranking(_candidates(systems), _candidates(lines), system_set, line_set, -0.5, unknown)


def _candidates(pairs):
    evidence = (Evidence("coronal.level", "bone", 0.9, 1.5), Evidence("middle.body", "straight", 0.8, -0.4))
    probabilities = [probability for _, probability in pairs]
    return tuple(Candidate(name, p, 1 + probabilities.index(p), evidence) for name, p in pairs)


def found(column, parts, score=0.9, rank=None, shift=0.0):
    x0, y0, x1, y1 = whole_box(column)
    box = (x0 + shift, y0, x1 + shift, y1)
    systems = rank or ranking(("ITI", 0.9), ("Bego", 0.1))
    axis = ((x0 + 10, y0), (x0 + 10, y1))
    return Implant(tuple(parts), None, box, score, axis, 20.0, 0.1, systems)


def complete(column, start, **values):
    """All three thirds, detected; their detections count from ``start``."""
    return [part(column, third, start + k, values.get(third)) for k, third in enumerate(THIRDS)]


def outcome(implants, truth, unexplained=(), image_id=1):
    return ImageOutcome(image_id, (500, 100), Assembly(tuple(implants), tuple(unexplained)), tuple(truth))
