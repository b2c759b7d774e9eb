"""What the training and validation sets teach an assembler reaches its state."""

import numpy as np
import pytest
from implant_scenes import CLASSES, LINES, detections, implant, make_instances, scenes

from implantdet.assembly import assembler as assembler_module
from implantdet.assembly.assembler import PartAssembler


def test_product_lines_are_learned():
    line = next(line for line in LINES if sum(other.system == line.system for other in LINES) > 1)
    records = [
        {"image_id": k, "width": 400, "height": 400, "annotations": implant(k, (200, 200), k, 120, line=line)}
        for k in range(12)
    ]
    assert PartAssembler(CLASSES).fit(records).state_.examples[line.title]["system"] == {line.system: 12}


def test_images_of_one_patient_are_judged_together(monkeypatch):
    records = [record | {"patient_id": f"p{k // 3}"} for k, record in enumerate(scenes(6, seed=5))]
    groups, calibrate = [], assembler_module.calibrate

    def spy(samples, *rest):
        groups.extend(sample.group for sample in samples)
        return calibrate(samples, *rest)

    monkeypatch.setattr(assembler_module, "calibrate", spy)
    PartAssembler(CLASSES).fit(scenes(40)).calibrate(records, [detections(r, lambda _: True) for r in records])
    assert len(set(groups)) == 2 < len(groups)


def test_what_validation_teaches_is_kept():
    """Nine of ten parts are found, all of them exactly; two boxes of each image are false."""
    rng, records = np.random.default_rng(0), scenes(40, seed=8)

    def predict(record):
        found = detections(record, lambda _: rng.random() > 0.1, score=0.9)
        corner = rng.uniform(0, 400, (2, 2))
        false = make_instances(np.hstack([corner, np.add(corner, (30, 80))]), [0.2, 0.4], [CLASSES.index("Bego")] * 2)
        return type(found).cat([found, false])

    predictions = [predict(record) for record in records]
    assembler = PartAssembler(CLASSES).fit(scenes(60, seed=1))
    before = assembler.state_
    state = assembler.calibrate(records, predictions).state_
    assert state.typical_best == pytest.approx(0.9)
    assert state.min_scores.max() == pytest.approx(0.9)
    assert (state.part_coefficients != before.part_coefficients).any()
    assert state.whole_weights[1] == 0  # the parts are exact
    assert state.calibration.system_quantiles.of_all is not None
    sure = PartAssembler(CLASSES, coverage=0.99).fit(scenes(60, seed=1)).calibrate(records, predictions)
    assert sure.state_.calibration.system_quantiles.of_all is None  # 99 images would be needed
