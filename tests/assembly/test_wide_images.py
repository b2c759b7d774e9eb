"""Images that are not square, with several implants."""

import numpy as np
import torch
from implant_scenes import CLASSES, detections, fitted, groups, implant, is_part


def test_boxes_end_at_the_lower_edge_of_a_wide_image():
    record = {"width": 700, "height": 400, "annotations": implant(0, (600, 340), 0, 150)}
    (found,) = fitted().assemble(detections(record, lambda a: CLASSES[a["category_id"]].startswith(("cor", "mid"))))
    assert found.box[3] == 400 and found.box[2] > 600


def test_implants_come_best_first():
    annotations = [a for k in range(3) for a in implant(k, (100 + 200 * k, 200), 4, 110)]
    found = detections({"width": 700, "height": 400, "annotations": annotations}, is_part)
    owners = [a["implant_id"] for a in annotations if is_part(a)]
    found.scores = torch.tensor([(0.6, 0.9, 0.75)[k] for k in owners], dtype=torch.float64)
    scores = [implant.score for implant in fitted().assemble(found)]
    assert len(set(scores)) == 3
    assert scores == sorted(scores, reverse=True)


def test_the_axis_of_the_image_decides_between_equals():
    """Three implants lean by 20°; of two more, an apical third lies as well under the coronal third of the other."""
    lean, length = -20, 100
    step = 1.85 * length * 2 / 3 * np.sin(np.radians(20))
    annotations = [a for k in range(3) for a in implant(k, (100 + 70 * k, 200), lean, length, width=28)]
    annotations += [a for k in range(2) for a in implant(3 + k, (400 + k * step, 200), lean, length, width=28)]
    seen = {(3, "coronal"), (3, "apical"), (4, "coronal")}
    record = {"width": 900, "height": 500, "annotations": annotations}

    def keep(a):
        return is_part(a) and (
            a["implant_id"] < 3 or (a["implant_id"], CLASSES[a["category_id"]].split(".")[0]) in seen
        )

    found = groups(fitted().assemble(detections(record, keep)), record, keep)
    assert [(3, "apical"), (3, "coronal")] in found
    assert [(4, "coronal")] in found
