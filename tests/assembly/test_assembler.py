"""The whole second stage: hand-made scenes, parameters, calibration."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from implant_scenes import (
    CLASSES,
    LINES,
    detections,
    fitted,
    groups,
    implant,
    is_part,
    make_instances,
    scenes,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from implantdet.assembly.assembler import METHODS, PartAssembler
from implantdet.config import add_implantdet_config
from implantdet.taxonomy import THIRDS

PARTS = [name for name in CLASSES if "." in name]  # the first of the classes


def truth(record, keep):
    found = {}
    for annotation in filter(keep, record["annotations"]):
        third = CLASSES[annotation["category_id"]].split(".")[0]
        third = third if "." in CLASSES[annotation["category_id"]] else "system"
        found.setdefault(annotation["implant_id"], set()).add((annotation["implant_id"], third))
    return sorted(sorted(members) for members in found.values())


@pytest.mark.parametrize("with_wholes", [False, True])
def test_clean_scenes_are_grouped_exactly(with_wholes):
    def keep(annotation):
        return with_wholes or is_part(annotation)

    for record in scenes(25, seed=11):
        assert groups(fitted().assemble(detections(record, keep)), record, keep) == truth(record, keep)


def test_scenes_with_missing_thirds_are_mostly_grouped_exactly():
    rng = np.random.default_rng(0)
    right = total = 0
    for record in scenes(40, seed=12):
        lost = {(i, t) for i in range(6) for t in ("coronal", "middle", "apical") if rng.random() < 0.15}

        def keep(annotation, lost=lost):
            third = CLASSES[annotation["category_id"]].split(".")[0]
            return is_part(annotation) and (annotation["implant_id"], third) not in lost

        expected = truth(record, keep)
        found = groups(fitted().assemble(detections(record, keep)), record, keep)
        right += sum(group in found for group in expected)
        total += len(expected)
    assert right > 0.9 * total


def test_boxes_of_implants_are_those_annotated():
    for record in scenes(10, seed=13):
        wholes = sorted(a["bbox"] for a in record["annotations"] if not is_part(a))
        found = sorted(implant.box for implant in fitted().assemble(detections(record)))
        assert np.array(found) == pytest.approx(np.array(wholes), abs=1e-3)


def test_the_system_of_the_design_is_ranked_first():
    for line in LINES:
        record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 5, 120, line=line)}
        (found,) = fitted().assemble(detections(record))
        assert found.ranking.systems[0].name == line.system


@pytest.mark.parametrize("tilt", [-40, 20, 30, 40])
@pytest.mark.parametrize("seen", [("coronal",), ("apical",), ("coronal", "middle"), THIRDS])
def test_tilted_neighbours_are_two_implants_though_their_boxes_lie_in_each_other(tilt, seen):
    for side in (-1, 1):
        neighbour = implant(1, (300 + side * 54 / np.cos(np.radians(tilt)), 300), tilt, 120, width=36)
        kept = [a for a in neighbour if CLASSES[a["category_id"]].split(".")[0] in seen]
        record = {"width": 700, "height": 700, "annotations": [*implant(0, (300, 300), tilt, 120, width=36), *kept]}
        found = groups(fitted().assemble(detections(record, is_part)), record, is_part)
        assert found == [[(0, third) for third in sorted(THIRDS)], [(1, third) for third in sorted(seen)]]


def test_slender_implants_that_lean_by_half_a_right_angle_are_one_each():
    step = 0.36 * 120 * np.array([1, 1]) / np.sqrt(2)
    annotations = [a for k in range(3) for a in implant(k, 250 + k * step, 45, 120, width=32)]
    record = {"width": 700, "height": 700, "annotations": annotations}
    assert groups(fitted().assemble(detections(record)), record, is_part) == truth(record, is_part)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_groups_implants_that_stand_apart(method):
    annotations = [a for k in range(3) for a in implant(k, (100 + 200 * k, 200), 4, 110)]
    record = {"width": 700, "height": 400, "annotations": annotations}
    assert groups(fitted(method).assemble(detections(record)), record, is_part) == truth(record, is_part)


def on_the_axis(annotations, thirds):
    """Annotations of a coronal third so many thirds beyond the coronal end of an implant, half as high as the implant.

    Crowns are as wide as that, and the detector took them for a coronal third.
    """
    boxes = {CLASSES[a["category_id"]].split(".")[0]: np.array(a["bbox"]) for a in annotations if is_part(a)}
    centre = {third: (box[:2] + box[2:]) / 2 for third, box in boxes.items()}
    third = (centre["apical"] - centre["coronal"]) / 2
    middle = centre["coronal"] - (0.5 + thirds) * third
    half = 0.75 * np.hypot(*third)
    box = [*(middle - half), *(middle + half)]
    return [a | {"bbox": box, "implant_id": -1} for a in annotations if CLASSES[a["category_id"]].startswith("coronal")]


@pytest.mark.parametrize("lost", ["", "coronal", "middle", "apical"])
@pytest.mark.parametrize("thirds, is_crown", [(0.8, True), (1.6, True), (5.0, False)])
def test_a_crown_is_no_implant_and_no_part_of_one(lost, thirds, is_crown):
    """What looks like a coronal third on top of an implant is its crown; farther off stands one of the other jaw."""
    for tilt in (0, 33, 90, 170, 250):
        annotations = implant(0, (400, 400), tilt, 120)
        seen = [a for a in annotations if is_part(a) and CLASSES[a["category_id"]].split(".")[0] != lost]
        record = {"width": 800, "height": 800, "annotations": [*seen, *on_the_axis(annotations, thirds)]}
        found = groups(fitted().assemble(detections(record)), record, is_part)
        expected = sorted({(0, CLASSES[a["category_id"]].split(".")[0]) for a in seen})
        assert found == sorted([expected] if is_crown else [expected, [(-1, "coronal")]])


@pytest.mark.parametrize("method", METHODS)
def test_empty_images_and_single_parts(method):
    assert fitted(method).assemble(make_instances([], [], [])) == []
    (only,) = fitted(method).assemble(
        make_instances(
            [(0, 0, 30, 30)] * 3,
            [1, 1, 1],
            [CLASSES.index(f"middle.{v}") for v in ("body.straight", "thread.square", "body.tapered")],
        )
    )
    assert [part.third for part in only.parts] == ["middle"]
    assert only.axis is None


def test_only_thirds_that_are_surely_seen_make_an_implant_longer_than_any_product_line():
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120)}
    for score, length, is_found in ((0.35, 12, True), (0.35, 60, False), (1.0, 52, True)):  # mm; 52: zygomatic
        found = fitted().assemble(detections(record, score=score), mm_per_pixel=length / 120)
        assert [i.length_mm for i in found if i.axis] == ([pytest.approx(length, rel=0.05)] if is_found else [])


def test_a_part_that_nothing_explains_is_named():
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120)}
    found = detections(record)
    false = make_instances([(350, 350, 380, 380)], [0.2], [CLASSES.index("apical.apex.cone")], found.image_size)
    assembly = fitted().explain(type(found).cat([found, false]))
    assert len(assembly.implants) == 1
    assert [part.third for part in assembly.unexplained] == ["apical"]


@pytest.mark.parametrize(
    "seen, score",
    [(("coronal",), 0.9), (("middle",), 0.9), (("apical",), 0.9), (("coronal", "middle"), 0.35), (THIRDS[1:], 0.35)],
)
def test_weak_thirds_stay_with_their_whole_implant(seen, score):
    """They say what it is, though they are too weak to be an implant of their own where whole ones are found."""
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120)}
    away = {"width": 400, "height": 400, "annotations": implant(1, (80, 200), 0, 120)}

    def keep(annotation):
        return not is_part(annotation) or CLASSES[annotation["category_id"]].startswith(tuple(seen))

    found = detections(record, keep, score)
    assert groups(fitted().assemble(found), record, keep) == truth(record, keep)
    thirds = type(found).cat([detections(away, lambda a: not is_part(a)), found[found.pred_classes < len(PARTS)]])
    (other,) = fitted().assemble(thirds)
    assert not other.observed


def test_thresholds_are_lower_where_everything_scores_low():
    """A weak implant beside a sure one is dropped, and stays where it is the best there is."""
    sure, weak = (
        detections({"width": 400, "height": 400, "annotations": implant(0, (x, 200), 0, 120)}, score=score)
        for x, score in ((100, 1.0), (300, 0.4))
    )
    assembler = PartAssembler(CLASSES, min_score=0.5).fit(scenes(30))
    both = type(sure).cat([sure, weak])
    assert len(PartAssembler(CLASSES, min_score=0.0).fit(scenes(30)).assemble(both)) == 2
    (found,) = assembler.assemble(both)
    assert found.box[2] < 200
    assert len(assembler.assemble(weak)) == 1


def test_nothing_is_assembled_before_fit():
    with pytest.raises(NotFittedError, match="call `fit` or `load`"):
        PartAssembler(CLASSES).assemble(make_instances([], [], []))
    with pytest.raises(ValueError, match=r"ASSEMBLY\.METHOD: found 'magic'"):
        PartAssembler(CLASSES, method="magic")


@pytest.mark.parametrize(
    ("key", "span", "allowed", "refused"),
    [
        ("MISS_RATE", "(0, 1)", (0.01, 0.99), (0.0, 1.0, 1.5)),
        ("FALSE_COST", "(0, inf)", (0.1, 50.0), (0.0, -1.0, float("inf"))),
        ("BOX_NOISE", "[0, inf)", (0.0, 0.5), (-0.01, float("inf"))),
        ("MERGE_DISTANCE", "[0, inf)", (0.0, 2.0), (-0.1,)),
        ("MERGE_OVERLAP", "(0, 1]", (0.1, 1.0), (0.0, 1.1)),
        ("MIN_SCORE", "[0, 1]", (0.0, 1.0), (-0.1, 1.1)),
        ("SCORE_QUANTILE", "[0, 1]", (0.0, 1.0), (-0.1, 1.1)),
        ("COVERAGE", "(0, 1)", (0.5, 0.99), (0.0, 1.0, 90.0)),
    ],
)
def test_numbers_out_of_their_range_are_refused(key, span, allowed, refused):
    for value in allowed:
        assert getattr(PartAssembler(CLASSES, **{key.lower(): value}), key.lower()) == value
    for value in (*refused, float("nan")):
        message = f"ASSEMBLY.{key}: found {value}, expected a number in {span}"
        with pytest.raises(ValueError, match=re.escape(message)):
            PartAssembler(CLASSES, **{key.lower(): value})


def test_it_is_an_estimator():
    """Its parameters are those of the constructor, and a copy has learned nothing."""
    assembler = PartAssembler(CLASSES, method="kmeans", coverage=0.8)
    assert assembler.get_params() | {"method": "kmeans", "coverage": 0.8} == assembler.get_params()
    copied = clone(assembler.fit(scenes(20)))
    assert copied.get_params() == assembler.get_params()
    check_is_fitted(assembler)
    with pytest.raises(NotFittedError):
        check_is_fitted(copied)
    for wrong in (
        *({"method": "bogus"}, {"coverage": 7.0}, {"coverage": "0.8"}, {"lines": ["x"]}, {"taxonomy": "x"}),
        {"method": "exact", "bogus": 1},
    ):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            assembler.set_params(**wrong)
    assert assembler.get_params() == copied.get_params()  # what is refused changes nothing
    check_is_fitted(assembler)
    assert assembler.set_params(**assembler.get_params()).state_ is not None
    clone(assembler.set_params(lines=list(LINES), thing_classes=list(CLASSES)))
    check_is_fitted(assembler)
    assembler.set_params(method="exact", lines=LINES[:1])
    assert assembler.longest == max(LINES[0].lengths) and assembler.ranker_.table.titles[0] == LINES[0].title
    assert assembler.set_params(lines=None, taxonomy=None).longest > assembler.set_params(lines=LINES[:1]).longest
    assert assembler.set_params(thing_classes=CLASSES[:3]).state_ is None and len(assembler.meanings) == 3


def test_a_new_product_line_needs_no_new_training(tmp_path):
    fitted().save(tmp_path / "assembler.json")
    new = dataclasses.replace(
        LINES[0], name="New", level="tissue", thread=("square", 1.0, 0.4, 1), apex=("cone", 0.5), hole="round"
    )
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120, line=new)}
    for lines, first in ((LINES, False), ((*LINES, new), True)):
        assembler = PartAssembler(CLASSES, lines=lines).load(tmp_path / "assembler.json")
        (found,) = assembler.assemble(detections(record, is_part))
        assert (found.ranking.lines[0].name == new.title) == first


def test_the_config_reaches_the_assembler():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    plain, by_config = PartAssembler(CLASSES), PartAssembler(cfg, CLASSES)
    assert {k: v for k, v in vars(by_config).items() if k != "lines"} == {
        k: v for k, v in vars(plain).items() if k != "lines"
    }
    others = {
        "METHOD": "kmeans",
        "MISS_RATE": 0.11,
        "FALSE_COST": 12.5,
        "BOX_NOISE": 0.13,
        "MERGE_DISTANCE": 0.14,
        "MERGE_OVERLAP": 0.15,
        "MIN_SCORE": 0.16,
        "SCORE_QUANTILE": 0.17,
        "COVERAGE": 0.18,
    }
    cfg.ASSEMBLY.update(others)
    changed = PartAssembler(cfg, CLASSES)
    assert {key: getattr(changed, key.lower()) for key in others} == others


@pytest.mark.parametrize("scale", [np.float32(0.1), torch.tensor(0.1), [[0.1, 0], [0, 0.1]], 0.1 * np.eye(2)])
def test_a_scale_may_be_of_any_kind_of_number(scale):
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 5, 120)}
    (found,), (plain,) = (fitted().assemble(detections(record), each) for each in (scale, 0.1))
    assert found.length_mm == pytest.approx(plain.length_mm) and found.width_mm == pytest.approx(plain.width_mm)


def noisy(record, rng, noise):
    """Detections of all parts with edges moved by ``noise`` of their box along the (upright) implants."""
    instances = detections(record)
    boxes = instances.pred_boxes.tensor
    moved = torch.from_numpy(rng.normal(0, noise, (len(boxes), 2))).to(boxes)
    boxes[:, 1::2] += moved * (boxes[:, 2:] - boxes[:, :2]).mean(dim=1, keepdim=True)
    return instances


def test_calibration_learns_the_geometry_anew_with_the_noise_that_it_measures():
    rng, records = np.random.default_rng(0), scenes(30, seed=5)
    precise, loose = (
        PartAssembler(CLASSES).fit(scenes(40)).calibrate(records, [noisy(r, rng, noise) for r in records])
        for noise in (0.0, 0.15)
    )
    assert np.linalg.det(loose.state_.model.triple.precision[0]) < np.linalg.det(
        precise.state_.model.triple.precision[0]
    )
    inferred = ((0,), 1)
    assert loose.state_.regressions[inferred].std[0] > precise.state_.regressions[inferred].std[0]


def test_calibration_knows_the_scale(monkeypatch):
    records = [record | {"mm_per_pixel": 0.1} for record in scenes(4, seed=5)]
    records[1] = records[1] | {"mm_per_pixel_matrix": [[0.2, 0.0], [0.0, 0.1]]}
    del records[1]["mm_per_pixel"], records[2]["mm_per_pixel"]
    assembler, scales = PartAssembler(CLASSES).fit(scenes(40)), []
    explain = assembler.explain
    monkeypatch.setattr(assembler, "explain", lambda found, scale: scales.append(scale) or explain(found, scale))
    assembler.calibrate(records, [detections(record) for record in records])
    assert scales == [0.1, [[0.2, 0.0], [0.0, 0.1]], None, 0.1]


def test_the_longest_line_of_a_list_decides_which_lengths_are_known():
    long = tuple(dataclasses.replace(line, lengths=(52.0,)) for line in LINES)
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120)}
    found = PartAssembler(CLASSES, lines=long).fit(scenes(40)).assemble(detections(record, score=0.35), 60 / 120)
    assert [implant.length_mm for implant in found] == [pytest.approx(60, rel=0.05)]


def test_boxes_of_implants_end_at_the_frame_as_annotations_do():
    """The apical third is cut off: it is inferred beyond the frame, where nobody annotates anything."""
    whole = implant(0, (200, 340), 0, 150)
    record = {"width": 400, "height": 400, "annotations": whole}
    (found,) = fitted().assemble(detections(record, lambda a: CLASSES[a["category_id"]].startswith(("cor", "mid"))))
    assert [part.third for part in found.parts if part.inferred] == ["apical"]
    assert found.parts[-1].box[3] > 405
    assert found.box[3] == 400
    assert found.axis[1][1] > 405  # the implant goes on
