"""Time and memory of ``implantdet phantom``; writes phantom_speed.json.

python benchmarks/phantom_speed.py [--preset idd] [--images N] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _record import write_result

from implantdet.phantom.generate import generate
from implantdet.phantom.presets import PRESETS

TARGET_SECONDS, TARGET_MIB = 240, 1024


@contextmanager
def peak_memory() -> Iterator[dict[int, float]]:
    """Process id → MiB, the largest resident size that each process of this group has had (Linux)."""
    found: dict[int, float] = {os.getpid(): 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if os.getpgid(int(folder.name)) == os.getpgid(0):
                        status = (folder / "status").read_text(encoding="utf-8")
                        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                        found[int(folder.name)] = float(peak.split()[1]) / 1024
                except (OSError, StopIteration):
                    continue  # the process has ended

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def folder_mib(folder: Path) -> float:
    """Size of all files below a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, 1)


def main() -> None:
    """Generate once, write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="idd", choices=sorted(PRESETS))
    parser.add_argument("--images", type=int, help="default: the preset's")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    images = args.images or PRESETS[args.preset].images
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        with peak_memory() as peak:
            start = time.perf_counter()
            generate(out, images, workers=args.workers, preset=args.preset)
            seconds = time.perf_counter() - start
        sizes = {"annotations_mib": folder_mib_of(out / "annotations.json"), "images_mib": folder_mib(out / "images")}
    summary = {
        "preset": args.preset,
        "images": images,
        "workers": args.workers,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "worker_peak_mib": round(max(mib for pid, mib in peak.items() if pid != os.getpid() or args.workers == 1)),
        "main_process_peak_mib": round(peak[os.getpid()]),
        **sizes,
        "target_seconds": TARGET_SECONDS,
        "target_worker_mib": TARGET_MIB,
    }
    print(summary)
    write_result("phantom_speed", summary)


def folder_mib_of(path: Path) -> float:
    """Size of one file."""
    return round(path.stat().st_size / 2**20, 1)


if __name__ == "__main__":
    main()
