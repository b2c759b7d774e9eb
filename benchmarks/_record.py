"""Write what a benchmark measured, with all that is needed to judge and repeat it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import detectron2
import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "timm", "hotcoco", "pycocotools", "numpy", "scipy")


def write_result(name: str, payload: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``: the payload, and under ``record`` the commit, command, date, machine and versions.

    The file gets its name when it is complete. NaN and infinity are refused, since JSON has neither.

    Args:
        name: of the benchmark; letters, digits, ``_`` and ``-``.
        payload: what was measured and with which settings and seeds; its keys should name their units.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"found the name {name!r}, expected letters, digits, _ and -")
    if "record" in payload:
        raise ValueError("the payload has a key 'record', which is taken")
    content = json.dumps(payload | {"record": _record()}, indent=2, allow_nan=False) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def _record() -> dict[str, Any]:
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": has_uncommitted_changes(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.processor(),
            "cores": os.cpu_count(),
            "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": _gpus(),
            "load_average": list(os.getloadavg()),
        },
        "versions": {"python": platform.python_version(), "detectron2": detectron2.__version__} | _versions(),
    }


def state_of_the_code() -> str:
    """The commit, with ``-dirty`` behind it if there are uncommitted changes."""
    return git("rev-parse", "HEAD") + ("-dirty" if has_uncommitted_changes() else "")


def has_uncommitted_changes() -> bool:
    """Whether tracked files are changed; results that other benchmarks have just written do not count."""
    return bool(git("status", "--porcelain", "--untracked-files=no", ":/", ":(top,exclude)benchmarks/results"))


def git(*arguments: str) -> str:
    """What git says of this repository."""
    result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _proc_field(path: str, field: str) -> str:
    """The first value of a field in a file of ``key : value`` lines; empty where there is no such file."""
    if not Path(path).is_file():
        return ""
    lines = (line.partition(":") for line in Path(path).read_text(encoding="utf-8").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == field), "")


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
