"""Hand-made detections, side by side."""

import torch
from detectron2.structures import Boxes, Instances


def detections(*rows):
    """Rows of (x1, x2, score, class), all of height 10."""
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([[x1, 0.0, x2, 10.0] for x1, x2, _, _ in rows]).reshape(-1, 4))
    instances.scores = torch.tensor([score for *_, score, _ in rows])
    instances.pred_classes = torch.tensor([label for *_, label in rows], dtype=torch.long)
    return instances
