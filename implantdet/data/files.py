"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it is renamed when the block ends, and removed if that fails.

    So a reader never sees half a file, and what was there before stays when the writing goes wrong.
    """
    # Shortened: with the number, a name that is as long as the file system takes would be too long.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
