"""Trainings in folders of their own, each to its end once, however often the script that wants them is interrupted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _fingerprint import fingerprint
from _record import state_of_the_code

from implantdet.data.idd import write_json
from implantdet.phantom.generate import GENERATOR

ROOT = Path(__file__).parents[1]
SCRIPT = "train_net.py"
BEGUN, DONE = "begun.json", "done"
SAVED = ("SOLVER.CHECKPOINT_EPOCHS", 1.0)  # the little that an interruption may cost


class OutOfTimeError(Exception):
    """--minutes are over."""


class FailedTrainingError(Exception):
    """A training cannot be had; the message says why: the last words of train_net.py, or ours."""


def train_once(
    run: Path,
    config: str,
    options: Iterable[object],
    *flags: object,
    configs: Sequence[str] | None = None,
    script: str = SCRIPT,
    deadline: float = math.inf,
) -> Path:
    """Run train_net.py with OUTPUT_DIR ``run``, unless it has come to its end there.

    In ``run``, ``begun.json`` tells what it was begun with and at which commits it was trained, ``done`` that it has
    come to its end, and ``console.txt`` what it said. Without ``done``, what has come to its end is evaluated again.

    Args:
        run: OUTPUT_DIR.
        config: config file, from the repository's root.
        options: KEY, VALUE, … after it.
        flags: of the command line, such as ``--resume``.
        configs: what tells this training from others, without paths and seeds if machines are to share it; None: the
            fingerprint of config and options, and the generator of phantoms.
        script: train_net.py, or a script that wraps it.
        deadline: until when it may run, in the seconds of ``time.monotonic``.

    Returns:
        ``run``.

    Raises:
        FailedTrainingError: the training failed, or was begun with other configs, or by something else.
        OutOfTimeError: the deadline came first.
    """
    options = [str(option) for option in options]
    if configs is None:
        configs = [fingerprint(config, options), f"phantom {GENERATOR}"]
    begun, done = run / BEGUN, run / DONE
    found = read_json(begun)
    if found:
        if found["configs"] != list(configs):
            raise FailedTrainingError(f"{run}: begun with other configs; choose another folder, or remove it")
    elif done.exists() or (run / "last_checkpoint").exists():
        raise FailedTrainingError(f"{run}: nothing tells what it was begun with; choose another folder, or remove it")
    if done.exists():
        return run
    remaining = deadline - time.monotonic()
    if remaining < 30:
        raise OutOfTimeError
    run.mkdir(parents=True, exist_ok=True)
    commits = dict.fromkeys([*found.get("commits", []), state_of_the_code()])
    write_json(begun, {"configs": list(configs), "commits": list(commits)})
    print(f"running {run}", flush=True)
    command = [sys.executable, script, "--config-file", config, *flags, "OUTPUT_DIR", run.resolve(), *SAVED, *options]
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
    done.touch()
    return run


def commit_of(run: Path) -> str:
    """The commit of a training; several, with a space between them, if it went on at another.

    Raises:
        FailedTrainingError: nothing tells it, as where another script trained.
    """
    if not (run / BEGUN).exists():
        raise FailedTrainingError(f"{run}: has no {BEGUN}; expected the folder of a training of these benchmarks")
    return " ".join(read_json(run / BEGUN)["commits"])


def origin(run: Path) -> dict[str, Any]:
    """The configs and the commit of a training."""
    return {"configs": read_json(run / BEGUN)["configs"], "commit": commit_of(run)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; nothing if it is not there: a dataset may have too few labels to probe."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
