import cv2
import numpy as np
import pytest
from foreign import picture

from implantdet.data.phash import picture_hash, same_pictures

SIDE = 160


def jaw(seed):
    """A picture whose outline is that of all others, with details of its own."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    outline = 120 * np.exp(-4 * ((x**2 + y**2) ** 0.5 - 0.6) ** 2)
    details = np.random.default_rng(seed).normal(0, 1, (20, 20))
    details = cv2.resize(details, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return (outline + 20 * details + 60).clip(0, 255).astype(np.uint8)


SYMMETRIES = [
    lambda image, k=k, flip=flip: np.ascontiguousarray(np.rot90(image[:, ::-1] if flip else image, k))
    for k in range(4)
    for flip in (False, True)
]


def salt_and_pepper(image):
    noisy, rng = image.copy(), np.random.default_rng(0)
    noisy.flat[rng.choice(image.size, int(0.06 * image.size), replace=False)] = rng.choice(
        [0, 255], int(0.06 * image.size)
    )
    return noisy


CONTRASTS = {
    "same": lambda image: image,
    "gamma 0.4": lambda image: (255 * (image / 255) ** 0.4).astype(np.uint8),
    "gamma 3": lambda image: (255 * (image / 255) ** 3).astype(np.uint8),
    "equalised": cv2.equalizeHist,
    "local": lambda image: cv2.createCLAHE(4, (8, 8)).apply(image),
    "negative": lambda image: 255 - image,
    "noise": salt_and_pepper,
    "16 bits": lambda image: image.astype(np.uint16) * 200,
    "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 0),
    "smaller": lambda image: cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA),
    "stretched": lambda image: cv2.resize(image, (300, 100), interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_copies_are_found_and_nothing_else(turn, contrast):
    images = [jaw(seed) for seed in range(5)]
    copy = CONTRASTS[contrast](SYMMETRIES[turn](images[4]))
    pairs = same_pictures(np.stack([picture_hash(image) for image in [*images, copy]]))
    assert [pair[:2] for pair in pairs] == [(4, 5)]
    assert 0.6 <= pairs[0][2] <= 1


def test_all_pairs_of_several_copies_across_blocks(monkeypatch):
    monkeypatch.setattr("implantdet.data.phash._ROWS", 3)
    hashes = [picture_hash(jaw(seed)) for seed in (0, 1, 2, 0, 3, 4, 0)]
    pairs = same_pictures(np.stack(hashes))
    assert [pair[:2] for pair in pairs] == [(0, 3), (0, 6), (3, 6)]
    assert all(pair[2] == 1 for pair in pairs)
    for number in (1, 3, 4):
        assert same_pictures(np.stack(hashes), number) == [pair for pair in pairs if pair[0] < number]


def test_different_pictures_with_one_outline_stay_apart():
    assert same_pictures(np.stack([picture_hash(jaw(seed)) for seed in range(100)])) == []


def test_blank_images_are_no_picture():
    blank = picture_hash(np.full((70, 90), 7, np.uint8))
    assert not blank.any()
    assert same_pictures(np.stack([blank, blank, picture_hash(picture(0))])) == []
