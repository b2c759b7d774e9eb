"""Config files and options, against Detectron2's own merging and by errors."""

import pytest
from conftest import REPOSITORY
from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config
from implantdet.engine.merging import merge


@pytest.fixture
def cfg():
    found = get_cfg()
    add_implantdet_config(found)
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_it_gives_what_detectron2_gives(cfg, path):
    options = ["SOLVER.MAX_EPOCHS", "3.5", "DATASETS.TRAIN", "('one', 'two')", "OUTPUT_DIR", "out/7", "SEED", "5"]
    expected = cfg.clone()
    expected.merge_from_file(str(path))
    expected.merge_from_list(options)
    merge(cfg, str(path), options)
    assert cfg == expected


def test_a_whole_number_may_stand_for_a_decimal_one(cfg, tmp_path):
    (tmp_path / "my.yaml").write_text("SOLVER: {MAX_EPOCHS: 7}\nVERSION: 2\n", encoding="utf-8")
    merge(cfg, str(tmp_path / "my.yaml"), ["SOLVER.BASE_LR", "1"])
    assert cfg.SOLVER.MAX_EPOCHS == 7.0
    assert cfg.SOLVER.BASE_LR == 1.0
    assert type(cfg.SOLVER.MAX_EPOCHS) is type(cfg.SOLVER.BASE_LR) is float


@pytest.mark.parametrize(
    ("word", "expected"),
    [("2024", "2024"), ("007", "007"), ("1e3", "1e3"), ("True", "True"), ("''", ""), ("'2024'", "2024")],
)
def test_names_may_look_like_numbers(cfg, word, expected):
    merge(cfg, "", ["DATASETS.NAME", word])
    assert expected == cfg.DATASETS.NAME


def test_a_number_in_a_file_is_no_name(cfg, tmp_path):
    (tmp_path / "my.yaml").write_text("DATASETS: {NAME: 2024}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"my\.yaml: DATASETS\.NAME: found 2024, expected str"):
        merge(cfg, str(tmp_path / "my.yaml"), [])


def test_none_is_a_value_where_it_is_the_default(cfg):
    cfg.MODEL.MASK_ON = True
    merge(cfg, "", ["MODEL.MASK_ON", "None"])
    assert cfg.MODEL.MASK_ON is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MAX_EPOCH", "3.0"], r"option: no key SOLVER\.MAX_EPOCH; did you mean SOLVER\.MAX_EPOCHS\?"),
        (["MODEL.VIT.NAME.OF", "x"], r"option: no key MODEL\.VIT\.NAME\.OF; did you mean MODEL\.VIT\.NAME\?"),
        (["qqq", "x"], r"option: no key qqq$"),
        (["SOLVER.IMS_PER_BATCH", "2.5"], r"IMS_PER_BATCH: found '2\.5', expected int, like its value so far, 16$"),
        (["MODEL.MASK_ON", "false"], r"MASK_ON: found 'false', expected True or False, a number, or None$"),
        (["MODEL.WEIGHTS", "None"], r"MODEL\.WEIGHTS: found nothing, expected str, like '' so far$"),
        (["SOLVER.AMP.ENABLED", "1"], r"ENABLED: found '1', expected bool, like its value so far, False$"),
        (["SOLVER.BASE_LR", "True"], r"BASE_LR: found 'True', expected float, like its value so far, 0\.001$"),
        (["MODEL", "x"], r"option: MODEL: found 'x', expected CfgNode"),
        (["SOLVER.MAX_EPOCHS"], r"pairs of KEY VALUE; found 1 words: SOLVER\.MAX_EPOCHS$"),
        (
            ["SEED", "1", "--resume"],
            r"words: SEED 1 --resume; --resume and the like come before the first",
        ),
    ],
)
def test_wrong_options_say_what_to_change(cfg, options, message):
    before = cfg.clone()
    with pytest.raises(ValueError, match=message):
        merge(cfg, "", options)
    assert cfg == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {VIT: {NAM: x}}", r"my\.yaml: no key MODEL\.VIT\.NAM; did you mean MODEL\.VIT\.NAME\?"),
        ("MODEL: 3", r"my\.yaml: MODEL: found 3, expected CfgNode"),
        ("SEED: {OF: 1}", r"my\.yaml: SEED: found {'OF': 1}, expected int"),
        ("MODEL: {WEIGHTS: }", r"my\.yaml: MODEL\.WEIGHTS: found nothing, expected str"),
        ("SEED: [1", r"my\.yaml: the config cannot be read: "),
        ("SEED: !!python/object/apply:os.getpid []", r"my\.yaml: the config cannot be read: could not determine a con"),
        ("", r"my\.yaml: the config cannot be read: "),
        ("- SEED", r"my\.yaml: found list, expected KEY: VALUE"),
        ("_BASE_: other.yaml", r"my\.yaml: the config cannot be read: .*other\.yaml"),
    ],
)
def test_wrong_files_say_what_to_change(cfg, tmp_path, text, message):
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        merge(cfg, str(tmp_path / "my.yaml"), [])


def test_a_file_that_is_no_text_is_named(cfg, tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match=r"my\.yaml: the config cannot be read: "):
        merge(cfg, str(tmp_path / "my.yaml"), [])


def test_a_missing_file_is_an_error(cfg, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such config file"):
        merge(cfg, str(tmp_path / "nowhere.yaml"), [])
