"""The pages of benchmarks/ are what their scripts make of the result files."""

import importlib
import sys

import pytest
from conftest import REPOSITORY
from matplotlib.figure import Figure

PAGES = ("detector", "foundation", "implants", "phantom", "pretraining")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_files_say(monkeypatch, tmp_path, name):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    page, shared = (importlib.import_module(module) for module in (f"{name}_page", "_page"))
    monkeypatch.setattr(shared, "__file__", str(tmp_path / "_page.py"))
    monkeypatch.setattr(page, "HERE", tmp_path, raising=False)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [f"{name}_page.py"])
    page.main()
    written, committed = (folder / f"{name}.md" for folder in (tmp_path, REPOSITORY / "benchmarks"))
    assert written.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
