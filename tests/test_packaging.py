"""The package as others get it: installed by pip, used from another folder, or imported where detectron2 is missing."""

import ast
import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory):
    """Python of an environment that has torch and detectron2, and implantdet by `pip install .`."""
    folder = tmp_path_factory.mktemp("foreign")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    python = folder / "venv/bin/python"
    _, site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # The installed packages of the development environment serve as those that the user already has. venv's own
    # setuptools is too old to make a wheel by itself on some versions of Python.
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools", cwd=folder)
    Path(site_packages.strip(), "already_there.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    copy = folder / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "implantdet"):
        run("cp", "-r", str(ROOT / name), str(copy / name), cwd=folder)
    code, output = run(python, "-m", "pip", "install", "--no-index", "--no-build-isolation", str(copy), cwd=folder)
    assert code == 0, output
    return python


def test_another_project_trains_with_our_backbone_and_head(foreign_python, tmp_path):
    script = textwrap.dedent(
        """
        import numpy as np
        import torch
        from detectron2.config import get_cfg
        from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
        from detectron2.modeling import build_model
        from detectron2.structures import BoxMode
        from detectron2.utils.events import EventStorage
        from PIL import Image

        import implantdet
        from implantdet.config import add_implantdet_config

        assert "site-packages" in implantdet.__file__ and "venv" in implantdet.__file__, implantdet.__file__


        def read_mine():
            records = []
            for number in range(4):
                name = f"{number}.png"
                Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 96), np.uint8)).save(name)
                # A molar with a crown: two categories on one box.
                box = {"bbox": [8, 8, 32, 42], "bbox_mode": BoxMode.XYWH_ABS}
                annotations = [box | {"category_id": 0}, box | {"category_id": 4}]
                size = {"file_name": name, "image_id": number, "height": 64, "width": 96}
                records.append(size | {"annotations": annotations})
            return records


        DatasetCatalog.register("mine", read_mine)
        MetadataCatalog.get("mine").set(thing_classes=["molar", "premolar", "filling", "caries", "crown"])
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.DATASETS.TRAIN = ("mine",)
        cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = "L", (64,)
        cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [110.0], [60.0]
        cfg.MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"
        cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE = "vit_tiny_patch16_224", 64
        cfg.MODEL.VIT.PYRAMID_CHANNELS = 16
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.ROI_HEADS.NAME = "ImplantROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 32
        model = build_model(cfg).train()
        with EventStorage():
            losses = model(next(iter(build_detection_train_loader(cfg))))
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        with torch.inference_mode():
            (found,) = model.eval()([{"image": torch.zeros(1, 64, 96), "height": 128, "width": 192}])
        assert found["instances"].image_size == (128, 192)
        assert len(found["instances"].pred_boxes) == len(found["instances"].scores)
        print("trained")
        """
    )
    code, output = run(foreign_python, "-c", script, cwd=tmp_path)
    assert code == 0, output
    assert "trained" in output.splitlines()


def test_whatever_is_imported_is_declared():
    """But for detectron2, which is on no index."""
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    imported = set()
    for path in (ROOT / "implantdet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {module.partition(".")[0] for module in modules}
    needed = imported - sys.stdlib_module_names - {"implantdet", "detectron2"}
    declared = set(re.findall(r'^        "([\w-]+)[>=.\d]*",$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M))
    assert {names.get(name, name) for name in needed} <= declared


def test_the_command_is_installed_with_its_data(foreign_python, tmp_path):
    code, output = run(foreign_python.parent / "implantdet", "--help", cwd=tmp_path)
    assert code == 0, output
    assert "folds" in output
    script = "from implantdet.taxonomy import default_taxonomy; print(len(default_taxonomy().axes))"
    assert run(foreign_python, "-c", script, cwd=tmp_path) == (0, "9\n")


def test_without_detectron2_one_error_says_how_to_install_it(tmp_path):
    code, output = run(
        sys.executable, "-c", "import sys; sys.modules['detectron2'] = None; import implantdet", cwd=tmp_path
    )
    assert code == 1
    assert "ImportError: implantdet needs detectron2" in output
    assert "pip install" in output


def test_an_error_inside_detectron2_is_not_mistaken_for_its_absence(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").write_text("import a_missing_dependency\n", encoding="utf-8")
    code, output = run(sys.executable, "-c", "import implantdet", cwd=tmp_path)
    assert code == 1
    assert "No module named 'a_missing_dependency'" in output
    assert "implantdet needs detectron2" not in output
