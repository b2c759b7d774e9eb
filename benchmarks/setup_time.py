"""Measure what `make test` costs before its first test: a fresh environment, from the locks, in an empty folder.

python benchmarks/setup_time.py EMPTY_FOLDER
"""

from __future__ import annotations

from _clone import clone_from_arguments, seconds_of_make
from _record import write_result


def main() -> None:
    """Measure and write ``results/setup_time.json``."""
    clone = clone_from_arguments(__doc__)
    first, second = (seconds_of_make(clone, ".venv/.ready") for _ in range(2))  # the second finds everything in place
    size = sum(file.lstat().st_size for file in (clone / ".venv").rglob("*") if file.is_file())
    write_result("setup_time", {"first_run_seconds": first, "second_run_seconds": second, "venv_gigabytes": size / 1e9})


if __name__ == "__main__":
    main()
