"""A trained detector and its assembler on radiographs that nobody annotated."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import write_idd
from detectron2.data import DatasetCatalog, MetadataCatalog

from implantdet import phantom
from implantdet.data.images import read_radiograph
from implantdet.data.problems import DataError
from implantdet.engine.predictor import ImplantPredictor
from implantdet.engine.second_stage import load_assembler
from implantdet.engine.trainer import Trainer
from implantdet.evaluation.implant_results import implants_of
from implantdet.phantom.lines import load_lines

SHORT = (
    *("SOLVER.MAX_EPOCHS", "0.1", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("ASSEMBLY.MIN_SCORE", "0.0"),  # the scores of so short a training are low
)


@pytest.mark.parametrize(
    "options",
    [
        ("MODEL.MASK_ON", "True"),
        (
            *("MODEL.MASK_ON", "False", "MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "SOLVER.EMA_DECAY", "0.5"),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
            *("MODEL.PART_HEAD.CLASS_WEIGHTING", "effective_number"),
            *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48,)"),
        ),
    ],
    ids=["masks", "many versions of an image"],
)
def test_it_finds_what_the_evaluation_of_the_training_found(tiny_cfg, tmp_path, options):
    root = write_idd(tmp_path / "predicted", num_images=40)  # a name that no other test registers
    content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    for number, image in enumerate(content["images"]):
        image["modality"] = ("panoramic", "periapical")[number % 2]
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    cfg = tiny_cfg(*SHORT, *options, "INPUT.PANORAMIC_ZOOM", "1.5", root=root)
    out = Path(cfg.OUTPUT_DIR)
    (out / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    written = json.loads((out / "tiny_predicted_test/implants.json").read_text(encoding="utf-8"))
    records = {record["image_id"]: record for record in DatasetCatalog.get("tiny_predicted_test")}
    for name in [name for name in DatasetCatalog if name.startswith("tiny_predicted")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    if cfg.SOLVER.EMA_DECAY:  # those of so short a training equal the others: only averaged weights are to be read
        checkpoint = torch.load(out / "model_final.pth", weights_only=True)
        checkpoint["model"] = {key: torch.zeros_like(value) for key, value in checkpoint["model"].items()}
        torch.save(checkpoint, out / "model_final.pth")
    predictor = ImplantPredictor(out, device="cpu")
    found = {"panoramic": 0, "periapical": 0}
    for image in written["images"]:
        record = records[image["image_id"]]
        assembly = predictor(read_radiograph(record["file_name"]), modality=record["modality"])
        mine = implants_of(assembly)
        assert json.loads(json.dumps(mine)) == image["implants"]
        found[record["modality"]] += len(mine)
    assert all(found.values())
    with pytest.warns(UserWarning, match=r"give the modality \(--modality panoramic\)"):
        predictor(np.zeros((60, 60), np.uint8))
    predictor(np.zeros((60, 60), np.uint8))  # once for all: here, a second warning is an error
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "_mapper", SimpleNamespace(augment=lambda levels, kind: seen.append(kind) or 1 / 0))
        for width, kind in ((102, None), (102, "periapical")):  # by its shape, unless somebody knows it
            with pytest.raises(ZeroDivisionError):
                predictor(np.zeros((60, width), np.uint8), modality=kind)
    assert seen == ["panoramic", "periapical"]
    with pytest.raises(ValueError, match="modality: found 'Panoramic', expected None or one of panoramic, periapical"):
        predictor(np.zeros((60, 60), np.uint8), modality="Panoramic")


def test_grey_levels_of_16_bits_and_their_scale_are_taken(tiny_cfg, tmp_path):
    cfg = tiny_cfg(*SHORT, root=write_idd(tmp_path / "deep", num_images=40))
    out = Path(cfg.OUTPUT_DIR)
    (out / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assembler = (out / "assembler.json").read_text(encoding="utf-8")
    predictor = ImplantPredictor(out, device="cpu")
    levels = np.random.default_rng(0).integers(0, 255, (64, 80)).astype(np.uint8)
    shallow, deep = predictor.detect(levels), predictor.detect(levels.astype(np.uint16) * 257)
    assert shallow.image_size == (64, 80)
    assert shallow.pred_boxes.tensor[:, 2].max() > 64
    assert deep.pred_boxes.tensor.numpy() == pytest.approx(shallow.pred_boxes.tensor.numpy(), abs=0.01)
    assert {implant.mm_per_pixel for implant in predictor(levels, 0.001).implants} == {0.001}
    other = json.loads(assembler)
    other["thing_classes"].pop()
    (out / "assembler.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(ValueError, match="expected the assembler of this training"):
        ImplantPredictor(out)
    (out / "assembler.json").unlink()
    with pytest.raises(DataError, match=r"assembler\.json: no such file; expected the OUTPUT_DIR of a training"):
        ImplantPredictor(out)


def test_the_lines_of_the_training_or_others_are_ranked(tiny_cfg, tmp_path):
    text = Path(phantom.__file__).with_name("lines.yaml").read_text(encoding="utf-8")
    for name in ("own", "renamed"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: BLT", f"name: {name}"), encoding="utf-8")
    root = write_idd(tmp_path / "lined", num_images=40)
    cfg = tiny_cfg(*SHORT, "ASSEMBLY.LINES", str(tmp_path / "own.yaml"), root=root)
    out = Path(cfg.OUTPUT_DIR)
    (out / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    def lines(**options):
        return {line.name for line in ImplantPredictor(out, device="cpu", **options)._assembler.lines}

    assert {"own", "renamed"} & lines() == {"own"}
    assert {"own", "renamed"} & lines(lines=tmp_path / "renamed.yaml") == {"renamed"}

    # A line that is written into the yaml after the training takes part in the ranking of an evaluation.
    longer = yaml.safe_load(text)
    new = dict(longer["lines"][0], name="New", thread=[["square", 0.8, 0.35, 1], "a"], apex=[["cone", 0.5], "a"])
    longer["lines"].append(new | {"level": ["tissue", "a"], "hole": ["round", "a"]})
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer), encoding="utf-8")
    (line,) = [line for line in load_lines(tmp_path / "longer.yaml") if line.name == "New"]
    design = {axis: {value: 1.0} for axis, value in line.attributes(line.lengths[0], line.diameters[0]).items()}
    for file, first in (("own", False), ("longer", True)):
        changed = cfg.clone()
        changed.defrost()
        changed.ASSEMBLY.LINES = str(tmp_path / f"{file}.yaml")
        (ranking,) = load_assembler(changed, str(out / "model_final.pth")).ranker_.rank([design])
        assert (ranking.lines[0].name == line.title) == first
    (tmp_path / "own.yaml").unlink()
    with pytest.raises(
        DataError, match=r"config\.yaml: ASSEMBLY\.LINES is .*own\.yaml', and there is no such file here"
    ):
        ImplantPredictor(out)
