import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes

from implantdet.modeling.multi_label import CategoryTable, multi_label_targets
from implantdet.taxonomy import default_taxonomy

NAMES = [
    "middle.body.straight",
    "middle.body.tapered",
    "middle.thread.v_shaped",
    "middle.thread.square",
    "apical.apex.flat",
    "apical.apex.dome",
    "ITI",
    "caries",
]
SUPERCATEGORIES = ["middle"] * 4 + ["apical"] * 2 + ["system", ""]
STRAIGHT, TAPERED, V_SHAPED, SQUARE, FLAT, DOME, ITI, CARIES = range(8)
TABLE = CategoryTable.from_names(NAMES, SUPERCATEGORIES)
HALF = Matcher([0.5], [0, 1])

# An implant of 20×60 pixels: its middle third lies in rows 20–40, its apical third in rows 40–60.
IMPLANT, MIDDLE, APICAL = [0.0, 0.0, 20.0, 60.0], [0.0, 20.0, 20.0, 40.0], [0.0, 40.0, 20.0, 60.0]


def targets_of(proposals, annotations, matcher=HALF, implants=None):
    """`annotations` is a list of (category, box)."""
    classes = torch.tensor([category for category, _ in annotations], dtype=torch.long)
    boxes = Boxes(torch.tensor([box for _, box in annotations]).reshape(-1, 4))
    implants = None if implants is None else torch.tensor(implants)
    return multi_label_targets(Boxes(torch.tensor(proposals).reshape(-1, 4)), boxes, classes, matcher, TABLE, implants)


def names_where(row):
    return {NAMES[index] for index in row.nonzero().flatten().tolist()}


def test_table_of_the_taxonomy():
    categories = default_taxonomy().coco_categories()
    table = CategoryTable.from_names([c["name"] for c in categories], [c["supercategory"] for c in categories])
    assert table.category_axis.shape == (31, 9)
    assert table.category_axis.sum(0).tolist() == [len(axis.values) for axis in default_taxonomy().axes]
    assert table.axis_third.sum(0).tolist() == [3, 2, 4]
    assert table.is_system.nonzero().flatten().tolist() == [27, 28, 29, 30]


def test_a_proposal_has_every_category_of_the_boxes_that_it_matches():
    annotations = [(TAPERED, MIDDLE), (V_SHAPED, MIDDLE), (FLAT, APICAL), (ITI, IMPLANT)]
    targets, weights = targets_of([MIDDLE, APICAL, IMPLANT, [100.0, 0.0, 120.0, 20.0]], annotations)
    assert names_where(targets[0]) == {NAMES[TAPERED], NAMES[V_SHAPED]}
    assert names_where(targets[1]) == {NAMES[FLAT]}
    assert names_where(targets[2]) == {NAMES[ITI]}
    assert names_where(targets[3]) == set()
    assert weights.all()


def test_the_threshold_is_met_category_by_category():
    # Against [0, 0, 10, 10]: a box of width 6 has IoU 0.6, of width 4 has 0.4.
    annotations = [(CARIES, [0.0, 0.0, 6.0, 10.0]), (ITI, [0.0, 0.0, 4.0, 10.0])]
    targets, weights = targets_of([[0.0, 0.0, 10.0, 10.0]], annotations)
    assert names_where(targets[0]) == {"caries"}
    assert weights.all()
    # Between 0.3 and 0.5 this matcher ignores: no loss for that category, others keep theirs.
    targets, weights = targets_of([[0.0, 0.0, 10.0, 10.0]], annotations, Matcher([0.3, 0.5], [0, -1, 1]))
    assert names_where(targets[0]) == {"caries"}
    assert names_where(weights[0] == 0) == {"ITI"}


def test_the_best_box_of_a_category_counts_whatever_the_order():
    far, near = (CARIES, [0.0, 0.0, 3.0, 10.0]), (CARIES, [0.0, 0.0, 9.0, 10.0])
    for annotations in ([far, near], [near, far]):
        targets, _ = targets_of([[0.0, 0.0, 10.0, 10.0]], annotations)
        assert names_where(targets[0]) == {"caries"}
    targets, _ = targets_of([[0.0, 0.0, 10.0, 10.0]], [far, far])
    assert not targets.any()


def test_an_axis_without_annotation_is_no_negative_on_its_third():
    # Nobody could assess the thread of this middle third.
    annotations = [(TAPERED, MIDDLE), (FLAT, APICAL), (ITI, IMPLANT)]
    _, weights = targets_of([MIDDLE, APICAL, IMPLANT, [100.0, 0.0, 120.0, 20.0]], annotations)
    assert names_where(weights[0] == 0) == {NAMES[V_SHAPED], NAMES[SQUARE]}
    assert weights[1:].all()  # elsewhere they are: an apical third has no thread of a middle third


def test_an_axis_without_annotation_is_no_negative_near_its_third_either():
    # Against rows 20 to 40: rows 30 to 50 have IoU 1/3, rows 31 to 51 have 9/31 < 0.3. Neither matches.
    near, far = [0.0, 30.0, 20.0, 50.0], [0.0, 31.0, 20.0, 51.0]
    annotations = [(TAPERED, MIDDLE), (FLAT, APICAL), (ITI, IMPLANT)]
    targets, weights = targets_of([near, far], annotations)
    assert not targets[0].any()
    assert names_where(weights[0] == 0) == {NAMES[V_SHAPED], NAMES[SQUARE]}
    assert weights[1].all()


def test_an_axis_keeps_its_negatives_where_its_own_box_is_missed():
    # Both axes were assessed, on boxes that differ: of widths 20 and 11 the proposal matches the first only.
    narrow = [0.0, 20.0, 11.0, 40.0]
    targets, weights = targets_of([[5.0, 20.0, 20.0, 40.0]], [(TAPERED, MIDDLE), (V_SHAPED, narrow)])
    assert names_where(targets[0]) == {NAMES[TAPERED]}
    assert weights.all()


def test_a_neighbour_that_was_assessed_keeps_its_negatives():
    shift = torch.tensor([40.0, 0.0, 40.0, 0.0])
    neighbour = (torch.tensor(MIDDLE) + shift).tolist()
    annotations = [(TAPERED, MIDDLE), (STRAIGHT, neighbour), (SQUARE, neighbour)]
    _, weights = targets_of([MIDDLE, neighbour], annotations)
    assert names_where(weights[0] == 0) == {NAMES[V_SHAPED], NAMES[SQUARE]}
    assert weights[1].all()


def test_a_third_without_any_annotation_is_no_negative_inside_its_implant():
    # The apical third is cut off or covered: there is no box to match.
    annotations = [(TAPERED, MIDDLE), (V_SHAPED, MIDDLE), (ITI, IMPLANT)]
    outside = [100.0, 40.0, 120.0, 60.0]
    half_in = [10.0, 40.0, 30.0, 60.0]
    mostly_out = [10.6, 40.0, 30.6, 60.0]
    targets, weights = targets_of([APICAL, half_in, mostly_out, outside, MIDDLE, IMPLANT], annotations)
    apical = {NAMES[FLAT], NAMES[DOME]}
    assert not targets[:4].any()
    assert names_where(weights[0] == 0) == apical
    assert names_where(weights[1] == 0) == apical
    assert weights[2].all()
    assert weights[3].all()
    assert weights[4:].all()  # these boxes are known to be something else


def test_an_implant_without_parts_says_nothing_about_its_parts():
    # Its own box may be a third of it: the other two may be cut off.
    _, weights = targets_of([MIDDLE, IMPLANT], [(ITI, IMPLANT)])
    assert names_where(weights[0]) == names_where(weights[1]) == {"ITI", "caries"}


def test_a_bare_implant_that_is_known_to_be_something_else_says_all():
    targets, weights = targets_of([IMPLANT], [(ITI, IMPLANT), (CARIES, IMPLANT)])
    assert names_where(targets[0]) == {"ITI", "caries"}
    assert weights.all()


def test_a_match_keeps_the_negatives_of_its_axis_beside_a_neighbour_without_it():
    # The boxes of two overlapping implants have IoU 1/3: the proposal is near to both thirds, and the body of the
    # neighbour was not assessed. That of the proposal is known.
    neighbour = [10.0, 20.0, 30.0, 40.0]
    annotations = [(TAPERED, MIDDLE), (V_SHAPED, MIDDLE), (V_SHAPED, neighbour)]
    targets, weights = targets_of([MIDDLE, neighbour], annotations)
    assert names_where(targets[0]) == {NAMES[TAPERED], NAMES[V_SHAPED]}
    assert weights[0].all()
    assert names_where(weights[1] == 0) == {NAMES[STRAIGHT], NAMES[TAPERED]}


def test_annotations_speak_of_one_implant_from_half_an_overlap():
    # Against width 20: a box of width 10 has IoU 0.5, of width 9.4 has 0.47. The proposal is near to the first third
    # (IoU 1/3), not to the second (1/5).
    for width, expected in ((10.0, set()), (9.4, {NAMES[V_SHAPED], NAMES[SQUARE]})):
        annotations = [(TAPERED, MIDDLE), (V_SHAPED, [0.0, 20.0, width, 40.0])]
        _, weights = targets_of([[0.0, 30.0, 20.0, 50.0]], annotations)
        assert names_where(weights[0] == 0) == expected | {NAMES[ITI]}  # nobody named the implant


def test_a_third_is_shown_if_half_of_its_box_lies_in_the_implant():
    for left, expected in ((10.0, set()), (10.6, {NAMES[FLAT], NAMES[DOME]})):
        annotations = [(TAPERED, MIDDLE), (V_SHAPED, MIDDLE), (FLAT, [left, 40.0, left + 20, 60.0]), (ITI, IMPLANT)]
        _, weights = targets_of([[0.0, 50.0, 4.0, 60.0]], annotations)
        assert names_where(weights[0] == 0) == expected


@pytest.mark.parametrize(("implants", "expected"), [([1, 1, 1, 2, 2], {FLAT, DOME}), ([1, -1, 1, 2, -1], set())])
def test_a_third_of_a_neighbour_inside_the_box_is_not_shown_where_implants_are_known(implants, expected):
    """The neighbour leans into the box of an implant whose apical third is covered."""
    wide = [0.0, 0.0, 60.0, 60.0]
    annotations = [(ITI, wide), (TAPERED, MIDDLE), (V_SHAPED, MIDDLE)]
    annotations += [(ITI, [30.0, 0.0, 90.0, 60.0]), (FLAT, [40.0, 40.0, 60.0, 60.0])]
    for given, names in ((implants, expected), (None, set())):
        _, weights = targets_of([APICAL], annotations, implants=given)
        assert names_where(weights[0] == 0) == {NAMES[index] for index in names}


def test_a_neighbour_on_the_same_place_answers_nothing_where_implants_are_known():
    annotations = [(TAPERED, MIDDLE), (TAPERED, MIDDLE), (V_SHAPED, MIDDLE)]
    _, weights = targets_of([MIDDLE], annotations)
    assert weights.all()
    near = [0.0, 30.0, 20.0, 50.0]  # IoU 1/3: it matches neither
    for implants in ([1, 2, 2], [0, 1, 1]):
        _, weights = targets_of([near], annotations, implants=implants)
    assert names_where(weights[0] == 0) == {NAMES[V_SHAPED], NAMES[SQUARE], NAMES[ITI]}  # nobody named the implants


def test_an_implant_that_nobody_named_is_no_negative_of_any_system():
    """Not where its third alone was proposed, and not for a neighbour that has a name."""
    neighbour = [50.0, 0.0, 70.0, 60.0]
    annotations = [(TAPERED, MIDDLE), (ITI, neighbour), (TAPERED, [50.0, 20.0, 70.0, 40.0])]
    for implants in (None, [1, 2, 2]):
        _, weights = targets_of([IMPLANT, MIDDLE, neighbour, [50.0, 0.0, 70.0, 29.0]], annotations, implants=implants)
        assert [weights[row, ITI].item() for row in range(4)] == [0, 1, 1, 1]


def test_a_plain_class_is_no_part_of_a_nameless_implant():
    _, weights = targets_of([[90.0, 0.0, 130.0, 40.0]], [(ITI, IMPLANT), (CARIES, [100.0, 0.0, 120.0, 20.0])])
    assert weights.all()


@pytest.mark.parametrize("num_proposals", [0, 2])
def test_an_image_without_annotations_is_all_negative(num_proposals):
    targets, weights = targets_of([MIDDLE] * num_proposals, [])
    assert targets.shape == weights.shape == (num_proposals, len(NAMES))
    assert not targets.any()
    assert weights.all()


def test_no_proposals():
    targets, weights = targets_of([], [(ITI, IMPLANT)])
    assert targets.shape == weights.shape == (0, len(NAMES))


def test_ordinary_classes_have_no_axes():
    table = CategoryTable.from_names(["cat", "dog"], ["", "animal"])
    boxes = Boxes(torch.tensor([MIDDLE, MIDDLE]))
    targets, weights = multi_label_targets(boxes, boxes[:1], torch.tensor([1]), HALF, table)
    assert targets.tolist() == [[0, 1], [0, 1]]
    assert weights.all()


@pytest.fixture
def registered():
    def load():
        MetadataCatalog.get("late").set(thing_classes=NAMES, supercategories=SUPERCATEGORIES)
        return []

    DatasetCatalog.register("late", load)
    yield "late"
    DatasetCatalog.remove("late")
    MetadataCatalog.remove("late")


def test_parts_without_supercategories_are_a_warning(registered, caplog):
    """As where Detectron2 has read a COCO file: it keeps names alone."""
    DatasetCatalog.get(registered)
    del MetadataCatalog.get(registered).supercategories
    assert CategoryTable.of_dataset(registered, 8).category_axis.shape == (8, 0)
    assert "The metadata of late have no 'supercategories'" in caplog.text


def test_table_of_a_dataset_that_names_its_classes_when_it_is_read(registered, caplog):
    assert torch.equal(CategoryTable.of_dataset(registered, 8).category_axis, TABLE.category_axis)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"has 8 classes, but MODEL\.ROI_HEADS\.NUM_CLASSES is 5"):
        CategoryTable.of_dataset(registered, 5)


def test_supercategories_of_another_number_are_an_error():
    MetadataCatalog.get("too_few").set(thing_classes=["a", "b"], supercategories=["middle"])
    with pytest.raises(ValueError, match=r"'too_few': the metadata have 1 supercategories for 2 classes; expected one"):
        CategoryTable.of_dataset("too_few", 2)
    MetadataCatalog.remove("too_few")
