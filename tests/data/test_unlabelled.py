"""Images without labels: from folders and datasets, never the test images, and square."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from implantdet.config import add_implantdet_config
from implantdet.data.problems import DataError
from implantdet.data.register import register_idd
from implantdet.data.unlabelled import (
    LeaveOutUnreadable,
    SquareCrop,
    UnlabelledMapper,
    image_folder_dicts,
    unlabelled_dicts,
    without_copies,
    without_same_pictures,
)


@pytest.fixture
def cfg(idd_root):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.DATASETS.ROOT, cfg.DATASETS.NAME = str(idd_root), "unlabelled"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("unlabelled_train_fold0",), ("unlabelled_val_fold0",)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [114.5], [57.6]
    cfg.MODEL.VIT.IMG_SIZE = 48
    register_idd(cfg.DATASETS.ROOT, cfg.DATASETS.NAME)
    return cfg


def names(dicts):
    return {record["file_name"].rsplit("/", 1)[-1] for record in dicts}


def names_of(part):
    return names(DatasetCatalog.get(f"unlabelled_{part}"))


# --- which images


def test_images_of_the_training_set(cfg):
    assert names(unlabelled_dicts(cfg)) == names_of("train_fold0")


def test_a_folder_is_read_with_its_subfolders_and_without_the_held_out_images(cfg, idd_root, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(idd_root / "images", folder / "deep" / "er")
    for path in list((folder / "deep" / "er").iterdir()):
        path.rename(path.with_name(f"renamed_{path.name}"))  # copies are known by their bytes, not their names
    (folder / "notes.txt").write_text("no image")
    cv2.imwrite(str(folder / "new.PNG"), np.zeros((20, 20), np.uint8))
    cfg.DATASETS.IMAGE_FOLDER = str(folder)
    held_out = names_of("test") | names_of("val_fold0")
    expected = {f"renamed_{name}" for name in names_of("train_fold0") - held_out} | {"new.PNG"}
    assert names(unlabelled_dicts(cfg)) == expected
    assert len(expected) == 7


def test_pictures_in_another_format_size_or_attitude_are_held_out_of_a_folder(cfg, idd_root, tmp_path):
    test_image, *_ = sorted(names_of("test"))
    kept = sorted(names_of("train_fold0"))[0]
    picture, other = (cv2.imread(str(idd_root / "images" / name), cv2.IMREAD_GRAYSCALE) for name in (test_image, kept))
    for name, pixels in {
        "converted.bmp": picture,
        "larger.png": cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
        "flipped.jpg": picture[:, ::-1],
        "brighter.png": np.clip(picture * 1.1 + 5, 0, 255).astype(np.uint8),
        "other.bmp": other,
    }.items():
        cv2.imwrite(str(tmp_path / name), pixels)
    cfg.DATASETS.IMAGE_FOLDER = str(tmp_path)
    assert names(unlabelled_dicts(cfg)) == {"other.bmp"}


def test_pictures_are_also_held_out_of_datasets_of_another_origin(cfg, idd_root, tmp_path):
    """As of an export that writes every image anew."""
    flipped = {"test": sorted(names_of("test"))[0], "other": sorted(names_of("train_fold0"))[0]}
    for name, source in flipped.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), cv2.imread(str(idd_root / "images" / source))[:, ::-1])
    records = [{"file_name": str(tmp_path / f"{name}.png"), "image_id": name} for name in flipped]
    DatasetCatalog.register("export", lambda: records)
    cfg.DATASETS.TRAIN = ("export", "unlabelled_train_fold0")
    try:
        assert names(unlabelled_dicts(cfg)) == {"other.png"} | names_of("train_fold0")
    finally:
        DatasetCatalog.remove("export")


def test_pictures_of_test_sets_of_another_origin_are_held_out_of_ours(cfg, idd_root, tmp_path):
    first, *others = [record["file_name"] for record in DatasetCatalog.get("unlabelled_train_fold0")]
    cv2.imwrite(str(tmp_path / "flipped.png"), cv2.imread(first)[::-1])
    DatasetCatalog.register("clinic_test", lambda: [{"file_name": str(tmp_path / "flipped.png"), "image_id": 0}])
    cfg.DATASETS.TEST = ("clinic_test",)
    try:
        assert [record["file_name"] for record in unlabelled_dicts(cfg)] == others
    finally:
        DatasetCatalog.remove("clinic_test")


def test_a_missing_file_and_a_wrong_size_end_no_training(cfg, idd_root, tmp_path, caplog):
    there = str(idd_root / "images" / sorted(names_of("train_fold0"))[0])
    records = [
        {"file_name": str(tmp_path / "absent.png"), "image_id": 1},
        {"file_name": there, "image_id": 2, "width": 7, "height": 7},
    ]
    DatasetCatalog.register("theirs", lambda: records)
    cfg.DATASETS.TRAIN = ("theirs",)
    try:
        kept = unlabelled_dicts(cfg)
        assert names(kept) == {there.rsplit("/", 1)[-1]}
        assert "left out: " in caplog.text and "absent.png" in caplog.text
        cfg.DATASETS.TEST, cfg.DATASETS.NAME = (), "theirs"  # nothing to compare with
        mapped = map(LeaveOutUnreadable(UnlabelledMapper(cfg, is_train=True)), unlabelled_dicts(cfg))
        assert [item and tuple(item["image"].shape) for item in mapped] == [None, (1, 48, 48)]
    finally:
        DatasetCatalog.remove("theirs")
    with pytest.raises(DataError, match=r"absent\.png: cannot be read, so copies of this test image cannot be found"):
        without_copies(records[1:], [records[0]["file_name"]])


def test_processes_share_the_reading_and_come_to_the_same(idd_root, tmp_path, monkeypatch):
    files = sorted((idd_root / "images").iterdir())
    cv2.imwrite(str(tmp_path / "flipped.png"), cv2.imread(str(files[0]))[::-1])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    dicts = [{"file_name": str(path)} for path in (*files[1:], *sorted(tmp_path.iterdir()))]
    alone = without_same_pictures(dicts, [str(files[0])])
    assert alone == (dicts[:-2], 1)
    # Two threads stand for two processes.
    rank, shares, barrier = threading.local(), [[], []], threading.Barrier(2)

    def all_gather(share):
        shares[rank.number] = share
        barrier.wait()
        return shares

    def process(number):
        rank.number = number
        return without_same_pictures(dicts, [str(files[0])])

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: rank.number)
    monkeypatch.setattr(comm, "all_gather", all_gather)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(process, (0, 1))) == [alone, alone]
    assert [len(share) for share in shares] == [6, 6]


def test_test_images_are_used_if_asked_for(cfg):
    cfg.DATASETS.TRAIN = ("unlabelled_train_fold0", "unlabelled_val_fold0")
    assert names(unlabelled_dicts(cfg)) == names_of("train_fold0") | names_of("val_fold0")
    cfg.DATASETS.TRAIN = ("unlabelled_train_fold0", "unlabelled_test")
    assert names(unlabelled_dicts(cfg)) == names_of("train_fold0") | names_of("test")


def test_sets_of_whole_implants_have_the_same_images(cfg):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("unlabelled_test_systems",), ()
    assert names(unlabelled_dicts(cfg)) == names_of("test")


def test_names_of_others_that_end_alike_are_other_datasets(cfg, idd_root):
    images = [{"file_name": str(idd_root / "images" / f"00{number}.png")} for number in (1, 2)]
    for name, records in (("clinic", images[:1]), ("clinic_systems", images)):
        DatasetCatalog.register(name, lambda records=records: records)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.NAME = ("clinic_systems",), ("clinic",), "clinic"
    try:
        assert names(unlabelled_dicts(cfg)) == {"002.png"}
    finally:
        for name in ("clinic", "clinic_systems"):
            DatasetCatalog.remove(name)


def test_images_that_cannot_be_read_are_left_out_with_a_warning(cfg, idd_root, tmp_path, caplog):
    shutil.copytree(idd_root / "images", tmp_path / "folder")
    (tmp_path / "folder" / "broken.png").write_bytes((idd_root / "images" / "001.png").read_bytes()[:200])
    cfg.DATASETS.IMAGE_FOLDER = str(tmp_path / "folder")
    assert "broken.png" not in names(unlabelled_dicts(cfg))  # its picture is compared with those of the test images
    assert re.search(r"left out: .*broken\.png: unreadable image: .*; repair or remove the file", caplog.text)
    caplog.clear()
    mapper = LeaveOutUnreadable(UnlabelledMapper(cfg, is_train=True))
    assert mapper({"file_name": str(tmp_path / "folder" / "broken.png")}) is None
    assert "left out: " in caplog.text
    assert mapper({"file_name": str(tmp_path / "folder" / "002.png")})["image"].shape == (1, 48, 48)


def test_a_warning_says_that_no_test_images_are_known(cfg, caplog):
    unlabelled_dicts(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("unlabelled_train_fold0", "unlabelled_test"), ()  # they are asked for
    unlabelled_dicts(cfg)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    cfg.DATASETS.NAME, cfg.DATASETS.TEST = "nobody", ("nobody_val_fold0",)
    unlabelled_dicts(cfg)
    assert "since no dataset nobody_test or nobody_val_fold0 is registered" in caplog.text


def test_nothing_left_is_an_error(cfg, idd_root, tmp_path):
    test_image = next(iter(names_of("test")))
    shutil.copy(idd_root / "images" / test_image, tmp_path / "copy.png")
    cfg.DATASETS.IMAGE_FOLDER = str(tmp_path)
    with pytest.raises(DataError, match="found 1 images, none of which is left without the test images"):
        unlabelled_dicts(cfg)


def test_folders_without_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"IMAGE_FOLDER .*: no image; expected files that end in \.png"):
        image_folder_dicts(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        image_folder_dicts(tmp_path / "absent")


def test_same_size_is_not_the_same_file(tmp_path):
    for name, content in (("a.png", b"one"), ("b.png", b"two"), ("c.png", b"one"), ("d.png", b"three")):
        (tmp_path / name).write_bytes(content)
    dicts = [{"file_name": str(tmp_path / name)} for name in ("b.png", "c.png", "d.png")]
    assert names(without_copies(dicts, [str(tmp_path / "a.png")])) == {"b.png", "d.png"}


# --- what the model gets


def test_mapper_gives_squares_without_labels(cfg):
    record = DatasetCatalog.get("unlabelled_train_fold0")[0]
    assert record["annotations"]
    mapped = UnlabelledMapper(cfg, is_train=True)(record)
    assert mapped["image"].shape == (1, 48, 48) and mapped["image"].dtype == torch.float32
    assert "annotations" not in mapped and "instances" not in mapped
    assert (mapped["height"], mapped["width"]) == (48, 48)  # Detectron2's own loader groups images by them
    assert record["annotations"]


@pytest.mark.parametrize(("flips", "turns"), [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_pretraining_flips_turns_and_changes_no_pixel(cfg, tmp_path, flips, turns):
    """No noise: it would become what is to be predicted."""
    levels = np.random.default_rng(0).integers(0, 256, (48, 48)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    cfg.INPUT.MIN_CROP_AREA, cfg.MODEL.VIT.IMG_SIZE = 1.0, 48
    cfg.INPUT.FLIP_PROB, cfg.INPUT.ROT90_PROB = flips, turns
    image = UnlabelledMapper(cfg, is_train=True)({"file_name": str(tmp_path / "a.png"), "image_id": 0})["image"][0]
    expected = [levels[::-1, ::-1]] if flips else [levels] if not turns else [np.rot90(levels), np.rot90(levels, -1)]
    assert any(np.array_equal(image.numpy(), each) for each in expected)


def test_mapper_is_decided_by_the_seeds(cfg):
    record, mapper = DatasetCatalog.get("unlabelled_train_fold0")[0], UnlabelledMapper(cfg, is_train=True)
    images = []
    for _ in range(2):
        torch.manual_seed(3)
        np.random.seed(3)
        images.append([mapper(record)["image"] for _ in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(*images, strict=True))
    assert not torch.equal(images[0][0], images[0][1])


def test_mapper_for_evaluation_shows_the_whole_image(cfg, tmp_path):
    wide = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (32, 1))
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    image = UnlabelledMapper(cfg, is_train=False)({"file_name": str(tmp_path / "wide.png")})["image"]
    assert image.shape == (1, 48, 48)
    # Left and right ends are there, and rows are equal.
    assert image[0, 0, 0] < 5 and image[0, 0, -1] > 250
    assert torch.allclose(image[0, 0], image[0, -1])


def test_square_crop_keeps_to_its_area():
    """Of an image whose levels are its columns, a crop's range of levels is its width."""
    image = np.tile(np.arange(100, dtype=np.float32), (100, 1))
    torch.manual_seed(0)
    widths = []
    for _ in range(50):
        crop = SquareCrop(32, 0.25).get_transform(image).apply_image(image)
        assert crop.shape == (32, 32)
        widths.append(float(np.ptp(crop)))
    # The narrowest crop of a quarter of the area in 3:4 is 43 pixels wide.
    assert 40 < min(widths) < 60 < max(widths) <= 99
    small = [float(np.ptp(SquareCrop(32, 0.01, 0.04).get_transform(image).apply_image(image))) for _ in range(50)]
    assert max(small) < 20 * (4 / 3) ** 0.5 + 1  # 4 % of the area in 4:3
    whole = SquareCrop(100, 1.0).get_transform(image).apply_image(image)
    assert np.array_equal(whole, image)


def test_crops_of_panoramics_show_as_much_less(cfg):
    """A quarter of the area: in as many pixels, everything is twice as large."""
    cfg.INPUT.PANORAMIC_ZOOM, cfg.INPUT.MIN_CROP_AREA, cfg.INPUT.MAX_CROP_AREA = 2.0, 0.4, 0.4
    mapper = UnlabelledMapper(cfg, is_train=True)
    levels = np.zeros((200, 300), np.uint8)
    for modality, share in ((None, 0.4), ("periapical", 0.4), ("panoramic", 0.1)):
        image, transforms = mapper.augment(levels, modality)
        crop = transforms.transforms[0]
        assert crop.w * crop.h == pytest.approx(share * 200 * 300, rel=0.03)
        assert image.shape[1:] == (cfg.MODEL.VIT.IMG_SIZE,) * 2


def test_panoramics_are_seen_whole_where_all_are(cfg):
    cfg.INPUT.PANORAMIC_ZOOM, cfg.INPUT.MIN_CROP_AREA = 2.0, 1.0
    _, transforms = UnlabelledMapper(cfg, is_train=True).augment(np.zeros((200, 300), np.uint8), "panoramic")
    assert (transforms.transforms[0].w, transforms.transforms[0].h) == (300, 200)


@pytest.mark.parametrize(("min_area", "max_area"), [(0.0, 1.0), (1.5, 1.0), (0.5, 0.2), (0.5, 1.1)])
def test_square_crop_names_wrong_areas(min_area, max_area):
    with pytest.raises(ValueError, match=f"found INPUT.MIN_CROP_AREA {min_area} and INPUT.MAX_CROP_AREA {max_area};"):
        SquareCrop(32, min_area, max_area)
