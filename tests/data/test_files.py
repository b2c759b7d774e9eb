"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from implantdet.data.files import written_whole


def test_a_file_comes_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("begun", [False, True])
def test_what_was_there_stays_when_the_writing_fails(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="disk"), written_whole(path) as temporary:
        if begun:
            temporary.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("я" * 125 + ".png")  # 254 bytes of 255
    with written_whole(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass
