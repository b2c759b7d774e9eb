from dataclasses import replace

import numpy as np
import pytest
from implant_scenes import CLASSES, detections, fitted, is_part, make_instances, scenes
from sklearn.linear_model import LogisticRegression

from implantdet.assembly import calibrating
from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.gather import usable
from implantdet.assembly.known import KnownImplant, known_implants
from implantdet.structures import Assembly, Implant, Part, Reading
from implantdet.taxonomy import SYSTEM, THIRDS, default_taxonomy

MEANINGS = fitted().meanings
BOX = (0.0, 0.0, 30.0, 90.0)


BOX_AWAY = (600.0, 0.0, 640.0, 40.0)


def known(records):
    return [known_implants(record, MEANINGS) for record in records]


def test_matching_is_one_to_one_with_the_largest_overlap():
    truth = [(0, 0, 10, 10), (8, 0, 18, 10)]
    # The first box overlaps both; alone it would take the first, together the sum decides.
    assert calibrating.match([(2, 0, 12, 10), (0, 0, 10, 10)], truth, min_iou=0.1) == [(0, 1), (1, 0)]
    assert calibrating.match([(50, 0, 60, 10), (0, 0, 10, 10)], truth) == [(1, 0)]
    assert calibrating.match([], truth) == calibrating.match(truth, []) == []


def test_matching_in_order_takes_the_best_of_what_is_left():
    truth = [(0, 0, 10, 10), (8, 0, 18, 10)]
    # The first box overlaps the first true one more; the second, which is that box, has to take the other one.
    assert calibrating.match_in_order([(2, 0, 12, 10), (0, 0, 10, 10)], truth, min_iou=0.1) == [(0, 0), (1, 1)]
    assert calibrating.match_in_order([(2, 0, 12, 10), (0, 0, 10, 10)], truth, min_iou=0.2) == [(0, 0)]
    assert calibrating.match_in_order([], truth) == calibrating.match_in_order(truth, []) == []


def test_whole_implants_keep_the_threshold_however_sure_the_detector_is():
    records = scenes(20, seed=3)
    found = [usable(detections(r, lambda _: True, score=0.9), MEANINGS) for r in records]
    # As if a system were one more value of the design.
    true = [[replace(i, values=i.values | {SYSTEM: i.system}) for i in of_image] for of_image in known(records)]
    thresholds, _ = calibrating.score_quantiles(zip(found, true, strict=True), MEANINGS, 0.05, default=0.05)
    by_name = dict(zip(CLASSES, thresholds, strict=True))
    assert {by_name[name] for name in default_taxonomy().systems} == {0.05}
    assert max(by_name.values()) == 0.9


def test_score_quantiles_of_right_detections():
    records = scenes(10, seed=3)
    score_of = np.linspace(0.2, 1.0, 10)
    found = [usable(detections(r, is_part, score=s), MEANINGS) for r, s in zip(records, score_of, strict=True)]
    thresholds, best = calibrating.score_quantiles(
        zip(found, known(records), strict=True), MEANINGS, quantile=0.5, default=0.05
    )
    assert best == pytest.approx(0.6)
    level = [t for t, name in zip(thresholds, CLASSES, strict=True) if name.startswith("coronal.level")]
    assert any(0.3 < threshold < 0.9 for threshold in level)
    assert thresholds[CLASSES.index("Bego")] == 0.05  # no whole implants were detected


@pytest.mark.parametrize("quantile", [0.05, 0.25])
def test_thresholds_drop_the_share_of_right_detections_that_is_asked_for(quantile):
    records = scenes(20, seed=3)
    scores = np.linspace(0.05, 1.0, 20)
    found = [usable(detections(r, is_part, score=s), MEANINGS) for r, s in zip(records, scores, strict=True)]
    truth = known(records)
    thresholds, best = calibrating.score_quantiles(zip(found, truth, strict=True), MEANINGS, quantile, default=0.01)
    index = next(k for k, name in enumerate(CLASSES) if name == "middle.body.straight")
    values = [(s, i.values.get("middle.body")) for s, image in zip(scores, truth, strict=True) for i in image]
    of_class = [s for s, value in values if value == "straight"]
    assert thresholds[index] == pytest.approx(np.quantile(of_class, quantile))
    assert thresholds[index] < np.median(of_class)
    # Images without implants say nothing of how sure a detector is where there are some.
    nothing = [usable(make_instances([BOX_AWAY], [0.1], [0]), MEANINGS)] * 9
    again = calibrating.score_quantiles(
        zip([*found, *nothing], [*truth, *[[]] * 9], strict=True), MEANINGS, quantile, default=0.01
    )
    assert again[1] == best


def test_what_rankings_learn_from_assembled_images():
    (record,) = scenes(1, seed=3)
    first, *_ = truth = known([record])[0]
    implants = [Implant((Part("middle", i.boxes["middle"], 0.9),), None, i.box, 0.9) for i in truth]
    assert len(truth) >= 3
    shown = [first, replace(truth[1], product_line=None), replace(truth[2], system=None), *truth[3:]]
    learned = calibrating.learn_from([("p", (400, 600), Assembly(tuple(implants), ()), shown)])
    told = [(sample.system, sample.line, sample.group) for sample in learned.samples]
    assert told == [(i.system, i.product_line, "p") for i in shown if i.system is not None]
    assert first.product_line is not None


def test_wrong_detections_set_no_threshold():
    records = scenes(10, seed=3)
    away = [make_instances([(600, 0, 640, 40)] * 3, [0.9] * 3, [0, 1, 2]) for _ in records]
    found = [usable(instances, MEANINGS) for instances in away]
    thresholds, _ = calibrating.score_quantiles(zip(found, known(records), strict=True), MEANINGS, 0.5, default=0.05)
    assert set(thresholds) == {0.05}


def test_rates_of_misses():
    records = scenes(20, seed=3)
    truth = known(records)
    total = sum(map(len, truth))
    parts = [[Part("middle", implant.boxes["middle"], 1.0) for implant in image[1:]] for image in truth]
    rates = calibrating.miss_rates(zip(parts, truth, strict=True), default=0.05)
    assert rates[1] == pytest.approx(len(records) / total)
    assert rates[0] == 0.5  # all are missed; bounded
    none = calibrating.miss_rates([([], [])], default=0.05)
    assert none.tolist() == [0.05] * 4


@pytest.mark.parametrize("turned", [False, True])
def test_noise_of_boxes_is_measured_across_and_along_the_implants(turned):
    rng = np.random.default_rng(0)
    truth = known(scenes(200, seed=3))
    noise = [0.12, 0.03, 0.12, 0.03] if turned else [0.03, 0.12, 0.03, 0.12]  # of x0, y0, x1, y1
    images = []
    for image in truth:
        parts = []
        for implant in image:
            if turned:  # by 90°: implants lie on the side
                implant.boxes = {slot: (y0, -x1, y1, -x0) for slot, (x0, y0, x1, y1) in implant.boxes.items()}
            for third in THIRDS:
                box = np.array(implant.boxes[third])
                side = (box[2:] - box[:2]).mean()
                parts.append(Part(third, tuple((box + rng.normal(0, noise) * side).tolist()), 1.0))
        images.append((parts, image))
    found = calibrating.box_noise(images, default=0.5)
    assert found[:3] == pytest.approx(np.tile([0.12, 0.03], (3, 1)), rel=0.15)
    assert found[3:].tolist() == [[0.5, 0.5]] * 2  # no whole implant was detected


def test_whole_implants_without_a_detected_third_have_a_noise_of_their_own():
    def image(error, parts):
        """An upright implant whose whole box is too wide and too high by ``error`` sides of 60."""
        boxes = {third: (0.0, 30.0 * k, 30.0, 30.0 * k + 30) for k, third in enumerate(THIRDS)}
        implant = KnownImplant(boxes | {"system": (0.0, 0.0, 30.0, 90.0)})
        low, high = -60 * error, 60 * error
        return [Part("system", (low, low, 30 + high, 90 + high), 1.0), *parts], [implant]

    third = Part("middle", (0.0, 30.0, 30.0, 60.0), 1.0)
    hard = [image(0.1 if k % 2 else -0.1, []) for k in range(20)]
    easy = [image(0.02 if k % 2 else -0.02, [third]) for k in range(20)]
    both = calibrating.box_noise([*hard, *easy], default=0.5)
    assert both[3:] == pytest.approx(1.4826 * np.array([[0.02] * 2, [0.1] * 2]), rel=1e-3)
    assert calibrating.box_noise(easy, default=0.5)[4].tolist() == both[3].tolist()  # as the others, if none is known


def test_one_part_on_the_wrong_implant_adds_no_noise():
    implant = KnownImplant({"coronal": (0, 0, 30, 30), "middle": (0, 30, 30, 60)})
    far = Part("coronal", (0, 9, 30, 39), 1.0)
    exact = [Part("coronal", (0, 0, 30, 30), 1.0)]
    found = calibrating.box_noise([*[(exact, [implant])] * 20, ([far], [implant])], default=0.5)
    assert found.tolist() == [[0, 0], *[[0.5, 0.5]] * 4]


def test_an_implant_without_a_direction_tells_no_noise():
    implant = KnownImplant({"coronal": (0, 0, 30, 30)})
    found = calibrating.box_noise([([Part("coronal", (0, 0, 30, 30), 1.0)], [implant])] * 20, default=0.5)
    assert (found == 0.5).all()


def test_weights_of_whole_implants_come_closest():
    rng = np.random.default_rng(0)
    truth = known(scenes(30, seed=3))
    pairs = []
    for target in (implant for image in truth for implant in image):
        box = np.array(target.box)
        noisy = (box + rng.normal(0, 1, 4)).tolist()
        thirds = tuple(Part(k, tuple(noisy), 1.0) for k in ("coronal", "middle", "apical"))
        whole = Part("system", tuple((box + rng.normal(0, 2, 4)).tolist()), 1.0)
        pairs.append((Implant(thirds, whole, BOX, 1.0), target, (10_000, 10_000)))
    weights = calibrating.whole_weights(pairs, default=0.5)
    # Inverse variances: 1 / 4 against 1 / 1, each box a noisy copy of the truth.
    assert weights[1] == pytest.approx(0.2, abs=0.05)
    assert weights[0] == 0.5


def test_parts_inferred_from_a_whole_implant_say_nothing_about_its_weight():
    truth = known(scenes(30, seed=3))
    inferred = tuple(Part(third, BOX, 0.0, box_std=(1.0,) * 4) for third in THIRDS)
    pairs = [
        (Implant(inferred, Part("system", target.box, 1.0), BOX, 1.0), target, (900, 900))
        for image in truth
        for target in image
    ]
    assert calibrating.whole_weights(pairs, default=0.4).tolist() == [0.4, 0.4]


def test_a_lone_third_says_nothing_about_the_weight_of_its_whole_implant():
    middle, whole = Part("middle", (0, 40, 30, 80), 1.0), Part("system", (0, 0, 30, 120), 1.0)
    pair = (Implant((middle,), whole, whole.box, 1.0), KnownImplant({"system": whole.box}), (200, 200))
    assert calibrating.whole_weights([pair] * 20, default=0.4).tolist() == [0.4, 0.4]


def test_weights_of_whole_implants_are_of_boxes_that_end_at_the_frame():
    """The parts are right, but for an inferred third that goes on below the frame; the whole box is too wide."""
    thirds = (
        Part("coronal", (0, 0, 30, 40), 1.0),
        Part("middle", (0, 40, 30, 80), 1.0),
        Part("apical", (0, 80, 30, 200), 0.0, box_std=(1.0,) * 4),
    )
    implant = Implant(thirds, Part("system", (0, 0, 33, 100), 1.0), BOX, 1.0)
    pair = (implant, KnownImplant({"system": (0, 0, 30, 100)}), (100, 200))
    assert calibrating.whole_weights([pair] * 10, default=0.5).tolist() == [0.0, 0.5]


def test_features_of_parts_by_hand():
    readings = (Reading("coronal.level", "bone", 0.75, 0), Reading("coronal.thread", "none", 0.5, 1))
    parts = [Part("coronal", BOX, 0.75, readings), Part("middle", BOX, 1.0), Part("apical", BOX, 0.0)]
    features = calibrating.part_features(parts)
    np.testing.assert_allclose(features, [[np.log(3), 1.25, 1], [7, 0, 1], [-7, 0, 1]])  # bounded log-odds
    assert calibrating.part_features([]).shape == (0, 3)
    # Of an implant: from 0 on, and 0 where a slot is missing or only inferred.
    inferred = Part("middle", BOX, 0.0, box_std=(1.0,) * 4)
    found = calibrating.score_features([parts[0], inferred], Part("system", BOX, 0.5))
    np.testing.assert_allclose(found, [7 + np.log(3), 1.25, 1, *[0] * 6, 7, 0, 1])


def test_worth_of_parts_is_the_log_odds_of_being_right():
    # Right middle thirds score 0.8 more often than not, wrong ones 0.2; their places decide which is which.
    rng = np.random.default_rng(0)
    truth = known(scenes(40, seed=3))
    images, labels, features = [], [], []
    for image in truth:
        right = [Part("middle", implant.boxes["middle"], float(rng.beta(6, 3))) for implant in image]
        wrong = [Part("middle", (900.0, 9.0 * k, 930.0, 9.0 * k + 9), float(rng.beta(3, 6))) for k in range(3)]
        images.append(([*right, *wrong], image))
        labels += [True] * len(right) + [False] * len(wrong)
        features.append(calibrating.part_features([*right, *wrong])[:, :2])
    default = np.arange(12.0).reshape(4, 3)
    coefficients = calibrating.part_coefficients(images, default)
    expected = LogisticRegression().fit(np.concatenate(features), labels)
    np.testing.assert_allclose(coefficients[1], [*expected.coef_[0], expected.intercept_[0] + calibrating.PLACE[1]])
    assert coefficients[1, 0] > 0.5
    assert np.array_equal(coefficients[[0, 2, 3]], default[[0, 2, 3]])  # nothing was seen of these


@pytest.mark.parametrize(("number", "times", "expected"), [(500, 3.0, 3.0), (500, 0.5, 0.5), (9, 3.0, 1.0)])
def test_inferred_thirds_that_stray_further_have_larger_deviations(number, times, expected):
    """Of normal errors the quantile and the deviation tell the same; nine thirds tell nothing."""
    rng = np.random.default_rng(0)
    pairs = []
    for error in rng.normal(0, times * 2.0, (number, 4)):
        inferred = Part("middle", tuple(np.add(BOX, error)), 0.0, box_std=(2.0,) * 4)
        implant = Implant((inferred,), None, BOX, 0.9)
        pairs.append((implant, KnownImplant({"middle": BOX, "system": BOX})))
    assert calibrating.straying(pairs) == pytest.approx(expected, rel=0.05)
    nobody = KnownImplant({"system": BOX})  # the third is not annotated
    assert calibrating.straying([(implant, nobody) for implant, _ in pairs]) == 1


def test_calibration_widens_the_deviations_of_what_it_infers():
    """Thirds that are there lie 5 pixels off, all to one side: those that are inferred from them are off as far."""
    records = scenes(40, seed=8)

    def predict(record, shift):
        missed = {a["implant_id"]: ("coronal", "middle", "apical")[k % 3] for k, a in enumerate(record["annotations"])}
        found = detections(
            record, lambda a: is_part(a) and not CLASSES[a["category_id"]].startswith(missed[a["implant_id"]])
        )
        found.pred_boxes.tensor += shift
        return found

    deviations = {}
    for shift in (0.0, 5.0):
        assembler = type(fitted())(CLASSES).fit(scenes(60, seed=1))
        assembler.calibrate(records, [predict(record, shift) for record in records])
        implants = assembler.assemble(predict(records[0], shift))
        deviations[shift] = np.mean([part.box_std for i in implants for part in i.parts if part.inferred])
        within = []
        for record in scenes(20, seed=9):
            images = known([record])[0]
            found = assembler.assemble(predict(record, shift))
            for i, j in calibrating.match_in_order([f.box for f in found], [k.box for k in images], 0.1):
                for part in (part for part in found[i].parts if part.inferred):
                    error = np.abs(np.subtract(part.box, images[j].boxes[part.third]))
                    within += (error <= 1.96 * np.array(part.box_std)).tolist()
        assert 0.88 <= np.mean(within) <= 0.99
    assert deviations[5.0] > 1.5 * deviations[0.0]


def test_implant_scores():
    parts = [Part("coronal", BOX, 0.9), Part("middle", BOX, 0.6), Part("apical", BOX, 0.0, box_std=(1.0,) * 4)]
    assert calibrating.mean_score(parts, Part("system", BOX, 0.3), 4) == pytest.approx(0.45)
    features = calibrating.score_features(parts, Part("system", BOX, 0.3))
    rng = np.random.default_rng(0)
    samples = rng.random((200, 12))
    correct = samples.sum(axis=1) + rng.normal(0, 0.3, 200) > 6
    coefficients = calibrating.fit_scores(samples, correct)
    expected = LogisticRegression().fit(samples, correct).predict_proba([features])[0, 1]
    assert calibrating.implant_score(features, coefficients) == pytest.approx(expected)
    assert calibrating.fit_scores(samples, np.ones(200, bool)) is None


def test_calibration_end_to_end():
    """A detector that sees whole implants, misses thirds and invents some."""
    rng = np.random.default_rng(0)
    records = scenes(40, seed=8)

    def predict(record):
        found = detections(record, lambda _: rng.random() > 0.1)
        corner = rng.uniform(0, 400, (2, 2))
        false = make_instances(np.hstack([corner, np.add(corner, (30, 80))]), [0.2, 0.4], [CLASSES.index("Bego")] * 2)
        return type(found).cat([found, false])

    predictions = [predict(record) for record in records]
    assembler = type(fitted())(CLASSES).fit(scenes(60, seed=1)).calibrate(records, predictions)
    state = assembler.state_
    assert state.calibration.system_quantiles.of_all is not None
    assert state.score_coefficients.shape == (13,)
    assert (state.miss_rates < 0.3).all()
    implants = [implant for p in predictions for implant in assembler.assemble(p)]
    assert np.mean([implant.score for implant in implants if len(implant.observed) > 1]) > 0.9
    assert np.mean([implant.score for implant in implants if not implant.observed]) < 0.3


def test_a_detector_that_is_sure_of_nothing_has_a_level():
    records = scenes(12, seed=2)
    found = [usable(detections(record, score=0.0), MEANINGS) for record in records]
    _, typical_best = calibrating.score_quantiles(zip(found, known(records), strict=True), MEANINGS, 0.05, 0.05)
    assert typical_best > 0


def test_what_the_training_set_lacks_cannot_be_read():
    """No implant of the scenes is of system ``other``, though the detector has a class for it."""
    records = scenes(30, seed=5)
    assembler = PartAssembler(CLASSES).fit(scenes(40))
    assembler.calibrate(records, [detections(record, lambda _: True) for record in records])
    offsets = assembler.state_.calibration.scalings["system"].offsets
    assert [s for s, nats in zip(assembler.taxonomy.systems, offsets, strict=True) if np.isnan(nats)] == ["other"]
