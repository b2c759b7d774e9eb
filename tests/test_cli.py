"""The commands from end to end, as a user types them."""

import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from implantdet import __version__
from implantdet.cli import COMMANDS, main
from implantdet.data import command_stats


def write_source(root, names=("a", "b", "c", "d", "e", "f"), box="0 0.5 0.5 0.2 0.4"):
    """YOLO labels of Roboflow's naming, two copies of each source in two splits, one of them flipped."""
    rng = np.random.default_rng(0)
    for name in names:
        levels = np.kron(rng.integers(0, 255, (12, 12)), np.ones((8, 8))).astype(np.uint8)
        for split, image in (("train", levels), ("valid", levels[:, ::-1])):
            stem = f"{name}_png.rf.{split}"
            for folder in ("images", "labels"):
                (root / split / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(root / split / "images" / f"{stem}.png")
            (root / split / "labels" / f"{stem}.txt").write_text(f"{box}\n1 0.3 0.3 0.1 0.1\n")
    (root / "data.yaml").write_text("names: [Implant, crown]\n")
    return root


def run(*arguments):
    return main([str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_warnings_are_told_in_one_line_without_the_code(monkeypatch, capsys, tmp_path):
    def run_with_warnings(args):
        warnings.simplefilter("default")  # these tests make errors of them
        warnings.warn_explicit("b: left aside", UserWarning, command_stats.__file__, 1)
        warnings.warn_explicit("of a library", UserWarning, "/lib/torch.py", 1)

    monkeypatch.setattr(command_stats, "run", run_with_warnings)
    monkeypatch.setattr(warnings, "showwarning", lambda *told: print("as usual:", *told[:3], file=sys.stderr))
    assert run("stats", tmp_path) == 0
    assert capsys.readouterr().err == (
        "implantdet stats: b: left aside\nas usual: of a library <class 'UserWarning'> /lib/torch.py\n"
    )


def test_the_road_from_an_export_to_folds(tmp_path, capsys):
    src, out = write_source(tmp_path / "src"), tmp_path / "idd"
    (tmp_path / "names.yaml").write_text("Implant: Bego\n")
    assert run("import", src, "--out", out, "--map-file", tmp_path / "names.yaml", "--map", "crown=cap") == 0
    assert f"{out}: 12 images and 24 annotations, from format 'yolo'" in capsys.readouterr().out
    assert [category["name"] for category in read(out / "annotations.json")["categories"]] == ["Bego", "cap"]

    assert run("audit", out) == 0
    text = capsys.readouterr().out
    assert "leaking in train    leaking in valid" in text
    assert "same source                           6  6 of 6              6 of 6" in text
    assert "Of the 6 pairs with one source it finds 6 (recall 100.0%);" in text
    assert "it flags 0 pairs with different sources.\n" in text
    assert read(out / "audit.json")["relations"]["source_id"]["groups"] == 6

    assert run("folds", out, "--seed", 3) == 0
    text = capsys.readouterr().out
    assert "folds.json: grouped by source_id, seed 3" in text
    assert "audit.json: images of its 6 pairs of the same picture stay together" in text
    assert "RISK" not in text

    assert run("audit", out) == 0
    assert "same picture                          0  0 of 2" in capsys.readouterr().out.split("folds:")[1]

    assert run("stats", out) == 0
    text = capsys.readouterr().out
    assert "12 images, 24 boxes, 0 of them with a mask" in text
    assert "imbalance: 1.0 boxes" in text
    assert read(out / "stats.json")["boxes"] == 24
    with Image.open(out / "stats.png") as image:
        assert image.format == "PNG"


def test_all_problems_are_printed_and_the_exit_code_is_1(tmp_path, capsys):
    src, out = write_source(tmp_path / "src"), tmp_path / "idd"
    label = src / "train/labels/a_png.rf.train.txt"
    label.write_text("7 0.5 0.5 0.1 0.1\n" * 30)
    assert run("import", src, "--out", out) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].endswith("30 problem(s), nothing written; mend them, or leave them out with --on-error skip")
    assert lines[1] == "  train/labels/a_png.rf.train.txt: line 1: unknown class: '7'; there are the classes 0 to 1"
    assert sum(line.startswith("  train/labels/a_png.rf.train.txt: line") for line in lines) == 30
    assert not out.exists()

    assert run("import", src, "--out", out, "--on-error", "skip") == 0
    text = capsys.readouterr().out
    assert text.count("rejected: train/labels/a_png.rf.train.txt: line") == 30
    assert f"0 images and 30 annotations rejected; {out / 'rejected.json'} has 30 line(s) about them" in text
    assert len(read(out / "rejected.json")) == 30


def test_clipping_and_notes_are_reported(tmp_path, capsys):
    src = write_source(tmp_path / "src", names=["a"], box="0 0.1 0.5 0.21 0.4")
    (tmp_path / "patients.csv").write_text("file_name,patient_id\na,p1\nb,p2\n")
    assert run("import", src, "--out", tmp_path / "idd", "--patients", tmp_path / "patients.csv") == 0
    text = capsys.readouterr().out
    assert "2 annotations stood out of the frame (their boxes by a hair); cut off at its edge" in text
    assert "note: patients.csv: 1 line(s) name no image of the source" in text
    assert {image["patient_id"] for image in read(tmp_path / "idd/annotations.json")["images"]} == {"p1"}


def test_folds_without_ids_refuse_or_name_the_risk(tmp_path, capsys):
    src, out = write_source(tmp_path / "src"), tmp_path / "idd"
    for path in [*src.rglob("*.png"), *src.rglob("*.txt")]:
        path.rename(path.with_name(path.name.replace("_png.rf.", "")))
    assert run("import", src, "--out", out) == 0
    assert run("folds", out) == 1
    assert "of 12 images, 0 have a patient_id, 0 have a source_id" in capsys.readouterr().err
    assert not (out / "folds.json").exists()
    assert run("folds", out, "--group-by", "image") == 0
    assert "RISK: images of one patient may stand in several parts" in capsys.readouterr().out
    (out / "folds.json").unlink()
    assert run("audit", out) == 0
    assert "The hash alone finds 6 pairs of the same picture.\n\n" in capsys.readouterr().out
    assert run("folds", out, "--group-by", "image") == 0
    text = capsys.readouterr().out
    assert "RISK" in text
    assert "its 6 pairs of the same picture stay together" in text


def test_a_test_set_is_not_replaced_by_accident(tmp_path, capsys):
    out = tmp_path / "idd"
    assert run("import", write_source(tmp_path / "src"), "--out", out) == 0
    assert run("folds", out) == 0
    assert run("folds", out) == 0, "the same again is harmless"
    before = (out / "folds.json").read_bytes()
    capsys.readouterr()
    assert run("folds", out, "--seed", 1) == 1
    assert "folds.json exists and is another split" in capsys.readouterr().err
    assert (out / "folds.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "nowhere", "--out", "x"], "there is no such folder or file"),
        (["import", ".", "--out", "x", "--map", "a"], "--map 'a': expected OLD=NEW"),
        (["import", ".", "--out", "x", "--map-file", "nowhere.yaml"], "No such file"),
        (["import", ".", "--out", "x", "--map-file", "list.yaml"], "expected lines `old: new`"),
        (["import", ".", "--out", "x", "--map-file", "none.yaml"], "the new name of 'a' must be a text; found None"),
        (["import", ".", "--out", "x", "--map-file", "date.yaml"], "map file 'date.yaml': month must be in 1..12"),
        (["audit", "nowhere"], "implantdet import SRC --out DIR"),
        (["folds", "nowhere"], "implantdet import SRC --out DIR"),
        (["stats", "nowhere"], "implantdet import SRC --out DIR"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a\n")
    Path("none.yaml").write_text("a:\n")
    Path("date.yaml").write_text("a: 2024-99-99\n")
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith(f"implantdet {arguments[0]}: ")


@pytest.mark.parametrize("arguments", [[], ["fold"], ["import", "x"], ["import", "x", "--out", "y", "--format", "voc"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: implantdet" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: implantdet {command}" in text
    assert COMMANDS[command][1][1:20] in text


@pytest.mark.parametrize("stopped_by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_no_traceback(monkeypatch, tmp_path, capsys, stopped_by):
    def interrupt(args):
        signal.raise_signal(stopped_by)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("implantdet.data.command_stats.run", interrupt)
    assert run("stats", tmp_path) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "implantdet stats: interrupted\n"


def test_help_imports_no_command():
    """Help comes at once: what the commands need is imported when one is asked for."""
    code = (
        "import sys, implantdet; before = set(sys.modules); from implantdet.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('implantdet')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"implantdet {__version__}"
    assert set(done.stdout.splitlines()[1].split()) <= {"implantdet.cli", "implantdet.data", "implantdet.data.problems"}
