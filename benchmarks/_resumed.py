"""Trainings in folders of their own, each to its end once, however often the script that wants them is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _record import git

from implantdet.data.idd import write_json

ROOT = Path(__file__).parents[1]


class OutOfTimeError(Exception):
    """--minutes are over."""


class FailedTrainingError(Exception):
    """A training cannot be had; the message says why: the last words of train_net.py, or ours."""


class Runs:
    """Runs train_net.py in folders of their own, each to its end once.

    There, ``configs.json`` holds the fingerprints of the configs behind the run, and ``done`` the commit that it ended
    at.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.commit = git("rev-parse", "HEAD")

    def train(self, run: Path, config: str, options: tuple[object, ...], configs: list[str]) -> Path:
        """Train unless it is done; an interrupted training is resumed.

        Raises:
            OutOfTimeError: the deadline came first.
            FailedTrainingError: the training failed, or was begun with other configs.
        """
        written = run / "configs.json"
        if written.exists() and read_json(written) != configs:
            raise FailedTrainingError(f"{run}: begun with other configs; choose another --out, or remove it")
        if (run / "done").exists():
            return run
        remaining = self.deadline - time.monotonic()
        if remaining < 30:
            raise OutOfTimeError
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "last_checkpoint").exists():  # what an earlier version of this script began may be of any config
            write_json(written, configs)
        print(f"training {run}", flush=True)
        command = [sys.executable, "train_net.py", "--config-file", config, "--resume", "OUTPUT_DIR", run, *options]
        with (run / "console.txt").open("a", encoding="utf-8") as console:
            try:
                subprocess.run(
                    [str(part) for part in command],
                    cwd=ROOT, check=True, stdout=console, stderr=subprocess.STDOUT, timeout=min(remaining, 1e8),
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError from error
            except subprocess.CalledProcessError as error:
                words = (run / "console.txt").read_text(encoding="utf-8").split("\n")
                raise FailedTrainingError(next((line for line in reversed(words) if line), str(error))) from error
        (run / "done").write_text(self.commit, encoding="utf-8")
        return run


def origin(run: Path) -> dict[str, Any]:
    """The commit of a finished training, and its configs if they are known."""
    configs = run / "configs.json"
    known = {"configs": read_json(configs)} if configs.exists() else {}
    return known | {"commit": (run / "done").read_text(encoding="utf-8")}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; nothing if it is not there: a dataset may have too few labels to probe."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
