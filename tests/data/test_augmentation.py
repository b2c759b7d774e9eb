import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from implantdet.config import add_implantdet_config
from implantdet.data.augmentation import PixelNoise, SmoothResizeShortestEdge, SmoothResizeTransform, build_augmentation


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def painted(height=60, width=90, box=(20, 10, 35, 42)):
    """A dark image with a bright box [x0, y0, x1, y1)."""
    image = np.full((height, width), 40, np.float32)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 200
    return image, np.array([box], dtype=float)


def found_box(image, threshold=120):
    """The box around the bright pixels."""
    y, x = np.nonzero(image > threshold)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


GEOMETRIC = {
    "horizontal": T.RandomFlip(1.0, horizontal=True, vertical=False),
    "vertical": T.RandomFlip(1.0, horizontal=False, vertical=True),
    "clockwise": T.RandomRotation([-90], sample_style="choice"),
    "counter-clockwise": T.RandomRotation([90], sample_style="choice"),
}
EXPECTED = {  # of a box at [20, 10, 35, 42] in an image 90 wide and 60 high
    "horizontal": [90 - 35, 10, 90 - 20, 42],
    "vertical": [20, 60 - 42, 35, 60 - 10],
    "clockwise": [60 - 42, 20, 60 - 10, 35],
    "counter-clockwise": [10, 90 - 35, 42, 90 - 20],
}


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_the_painted_box_is_found_where_the_box_says(name, dtype):
    image, boxes = painted()
    augmented = T.AugInput(image.astype(dtype), boxes=boxes, sem_seg=(image > 100).astype(np.uint8))
    GEOMETRIC[name](augmented)
    assert found_box(augmented.image) == EXPECTED[name]
    np.testing.assert_allclose(augmented.boxes, [EXPECTED[name]], atol=1e-9)
    np.testing.assert_array_equal(augmented.sem_seg, augmented.image > 100)


@pytest.mark.parametrize("shape", [(61, 90), (333, 500), (1440, 2944)])
@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (-90, -1)])
def test_quarter_turns_move_pixels_and_change_none(shape, angle, turns):
    image = np.random.rand(*shape).astype(np.float32)
    turned = T.RandomRotation([angle], sample_style="choice").get_transform(image).apply_image(image)
    np.testing.assert_array_equal(turned, np.rot90(image, turns))


@pytest.mark.parametrize("size", [(30, 45), (120, 180), (45, 90)])
def test_resizing_moves_the_box_along(size):
    image, boxes = painted()
    resize = SmoothResizeTransform(60, 90, *size)
    found = found_box(resize.apply_image(image))
    expected = boxes[0] * [size[1] / 90, size[0] / 60, size[1] / 90, size[0] / 60]
    np.testing.assert_allclose(resize.apply_box(boxes)[0], expected)
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_float_images_are_resized_as_detectron2_resizes_8_bit_ones():
    image = np.random.randint(0, 256, (300, 500), dtype=np.uint8)
    ours = SmoothResizeTransform(300, 500, 64, 107)
    theirs = T.ResizeTransform(300, 500, 64, 107)
    np.testing.assert_allclose(ours.apply_image(image.astype(np.float32)), theirs.apply_image(image), atol=1.01)
    mask = (image > 128).astype(np.uint8)
    np.testing.assert_array_equal(ours.apply_segmentation(mask), theirs.apply_segmentation(mask))


def test_shortest_edge():
    image = np.zeros((60, 90), np.float32)
    assert SmoothResizeShortestEdge(30, 100).get_transform(image).apply_image(image).shape == (30, 45)
    assert SmoothResizeShortestEdge(60, 45).get_transform(image).apply_image(image).shape == (30, 45)
    assert isinstance(SmoothResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


def test_noise_is_salt_and_pepper_on_up_to_its_fraction():
    image = np.full((100, 100), 100, np.float32)
    shares = []
    for _ in range(200):
        noisy = PixelNoise(0.06).get_transform(image).apply_image(image)
        assert set(np.unique(noisy)) <= {0, 100, 255}
        shares.append((noisy != 100).mean())
    assert max(shares) <= 0.06
    # Uniform from 0 to 6 %, less the pixels that were drawn twice.
    assert np.mean(shares) == pytest.approx(0.03, abs=0.003)
    assert (image == 100).all(), "the image itself is left alone"


def test_noise_moves_nothing():
    image, boxes = painted()
    augmented = T.AugInput(image, boxes=boxes.copy(), sem_seg=(image > 100).astype(np.uint8))
    transform = PixelNoise(0.06)(augmented)
    np.testing.assert_array_equal(augmented.boxes, boxes)
    np.testing.assert_array_equal(augmented.sem_seg, image > 100)
    assert isinstance(augmented.image, np.ndarray)
    again = transform.apply_image(image)
    np.testing.assert_array_equal(again, augmented.image)


def test_no_noise_and_wrong_noise():
    image, _ = painted()
    np.testing.assert_array_equal(PixelNoise(0).get_transform(image).apply_image(image), image)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"INPUT\.NOISE_FRACTION must be from 0 to 1"):
            PixelNoise(fraction)


def config(**options):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_list([item for key, value in options.items() for item in (f"INPUT.{key}", value)])
    return cfg


@pytest.mark.parametrize(
    ("flip", "turn", "outcomes"),
    [
        (0.0, 0.0, [lambda image: image]),
        (1.0, 0.0, [lambda image: image[::-1, ::-1]]),
        (0.0, 1.0, [np.rot90, lambda image: np.rot90(image, -1)]),
    ],
)
def test_probabilities_decide(flip, turn, outcomes):
    cfg = config(FLIP_PROB=flip, ROT90_PROB=turn, MIN_SIZE_TRAIN=(60,), NOISE_FRACTION=0.0)
    augmentations = T.AugmentationList(build_augmentation(cfg, True))
    image, _ = painted()
    seen = set()
    for _ in range(20):
        augmented = T.AugInput(image)
        augmentations(augmented)
        found = {index for index, change in enumerate(outcomes) if np.array_equal(augmented.image, change(image))}
        assert found, "nothing else comes up"
        seen |= found
    assert seen == set(range(len(outcomes)))


def test_all_eight_symmetries_come_up_and_the_box_follows():
    cfg = config(MIN_SIZE_TRAIN=(60,))
    augmentations = T.AugmentationList(build_augmentation(cfg, True))
    seen = set()
    for _ in range(200):
        image, boxes = painted()
        augmented = T.AugInput(image, boxes=boxes)
        augmentations(augmented)
        clean = (augmented.image > 120) & (augmented.image < 250)  # without salt
        rows, columns = (clean.mean(axis) for axis in (1, 0))
        y, x = np.flatnonzero(rows > rows.max() / 2), np.flatnonzero(columns > columns.max() / 2)
        found = (x[0], y[0], x[-1] + 1, y[-1] + 1)
        np.testing.assert_allclose(augmented.boxes[0], found, atol=1e-9)
        seen.add(found)
    assert len(seen) == 8


def test_random_numbers_come_from_numpys_global_generator():
    cfg = config(MIN_SIZE_TRAIN=(40, 60), MIN_SIZE_TRAIN_SAMPLING="range")
    image, _ = painted()
    runs = []
    for _ in range(2):
        np.random.seed(5)
        augmented = T.AugInput(image)
        T.AugmentationList(build_augmentation(cfg, True))(augmented)
        runs.append(augmented.image)
    np.testing.assert_array_equal(*runs)


def test_without_training_the_image_is_resized_only():
    cfg = config(MIN_SIZE_TEST=30, MAX_SIZE_TEST=60)
    image, _ = painted()
    augmented = T.AugInput(image)
    T.AugmentationList(build_augmentation(cfg, False))(augmented)
    np.testing.assert_array_equal(augmented.image, SmoothResizeTransform(60, 90, 30, 45).apply_image(image))
