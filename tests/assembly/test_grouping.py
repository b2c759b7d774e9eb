"""What the second stage promises about true parts: how often the thirds of an implant, and no others, come together."""

import numpy as np
import pytest
from implant_scenes import CLASSES, detections, fitted, is_part, make_instances, scene

from implantdet.assembly.assembler import METHODS
from implantdet.assembly.geometry import iou
from implantdet.taxonomy import THIRDS

SCENES = [scene(np.random.default_rng([12, k]), k) for k in range(40)]
CROWDED = [scene(np.random.default_rng([13, k]), k, count=8, size=900) for k in range(10)]


def third_of(annotation):
    return CLASSES[annotation["category_id"]].split(".")[0]


def lost(record, rng, condition):
    """Implants and thirds that are not detected."""
    thirds = sorted({(a["implant_id"], third_of(a)) for a in record["annotations"] if is_part(a)})
    if condition == "15 % missing":
        return {third for third in thirds if rng.random() < 0.15}
    if condition == "one third missing":
        return {(implant, THIRDS[rng.integers(3)]) for implant in {i for i, _ in thirds}}
    return set()


def false_thirds(record, rng, share=0.2):
    """As many false thirds as a share of the real ones, as well supported, anywhere: of each its boxes and classes."""
    real = {}
    for a in filter(is_part, record["annotations"]):
        real.setdefault((a["implant_id"], third_of(a)), []).append(a)
    for _ in range(rng.binomial(len(real), share)):
        copied = list(real.values())[rng.integers(len(real))]
        size = (np.array(copied[0]["bbox"][2:]) - copied[0]["bbox"][:2]) * np.exp(rng.uniform(-0.3, 0.3, 2))
        corner = rng.uniform(0, np.array([record["width"], record["height"]]) - size)
        yield [[*corner, *(corner + size)]] * len(copied), [a["category_id"] for a in copied]


def outcome(method, records, condition):
    """Share of the implants with a third that are grouped exactly, and the median IoU of their boxes."""
    rng = np.random.default_rng(0)
    exact, overlap = [], []
    for record in records:
        missing = lost(record, rng, condition)
        kept = [
            a for a in record["annotations"] if is_part(a) and (a["implant_id"], third_of(a)) not in missing
        ]  # in the order of their detections
        instances = detections(record, lambda a, kept=kept: a in kept)
        if condition == "false positives":
            extra = [make_instances(b, [1.0] * len(b), c, instances.image_size) for b, c in false_thirds(record, rng)]
            instances = type(instances).cat([instances, *extra])
        owner = [a["implant_id"] for a in kept] + [None] * (len(instances) - len(kept))
        found = fitted(method).assemble(instances)
        groups = [{r.detection for p in i.observed for r in (*p.readings, *p.rivals)} for i in found]
        boxes = np.array([i.box for i in found]).reshape(-1, 4)
        for whole in (a for a in record["annotations"] if not is_part(a)):
            mine = {k for k, implant in enumerate(owner) if implant == whole["implant_id"]}
            if mine:
                exact.append(mine in groups)
                overlap.append(iou(np.array(whole["bbox"]), boxes).max(initial=0))
    return np.mean(exact), np.median(overlap)


@pytest.mark.parametrize(
    ("condition", "records", "least", "least_iou"),
    [
        ("clean", SCENES, 0.99, 0.95),
        ("15 % missing", SCENES, 0.97, 0.95),
        ("one third missing", SCENES, 0.97, 0.85),
        ("false positives", SCENES, 0.95, 0.95),
        ("15 % missing", CROWDED, 0.95, 0.95),
    ],
)
def test_parts_are_grouped_exactly(condition, records, least, least_iou):
    exact, overlap = outcome("exact", records, condition)
    assert exact >= least and overlap >= least_iou


def test_the_exact_method_groups_at_least_as_well_as_k_means():
    shares = {method: outcome(method, SCENES[:15], "15 % missing")[0] for method in METHODS}
    assert shares["exact"] == max(shares.values()) > min(shares.values())
