"""The command line of the phantom."""

import argparse

import pytest

from implantdet.data.idd import load_idd
from implantdet.phantom import command


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_makes_a_folder_and_sheets(tmp_path, capsys):
    out = tmp_path / "mini"
    numbers = ["--images", "5", "--patients", "5", "--workers", "1"]
    command.run(parse("--out", str(out), "--preset", "mini", *numbers, "--sheets", str(tmp_path / "sheets")))
    assert len(load_idd(out)["images"]) == 5
    assert (tmp_path / "sheets" / "mini_boxes.jpg").is_file()
    assert "mini: 5 radiographs" in capsys.readouterr().out


def test_defaults():
    args = parse("--out", "x")
    assert (args.preset, args.images, args.seed) == ("idd", None, 0)
    assert args.workers >= 1


def test_unknown_preset(capsys):
    with pytest.raises(SystemExit):
        parse("--out", "x", "--preset", "maxi")
    assert "invalid choice: 'maxi'" in capsys.readouterr().err
