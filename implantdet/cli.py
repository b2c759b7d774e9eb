"""The command ``implantdet``.

A command is a module with ``add_arguments(parser)`` and ``run(args)``, named in :data:`COMMANDS`. It is imported when
it is asked for, so that help and errors come at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from implantdet import __version__
from implantdet.data.problems import DataError

COMMANDS = {
    "import": ("implantdet.data.command_import", "bring a dataset from COCO, YOLO or labelme into the IDD format"),
    "audit": ("implantdet.data.command_audit", "find images that belong together, and leaks between splits"),
    "folds": ("implantdet.data.command_folds", "split by patient into a test set and four folds"),
    "stats": ("implantdet.data.command_stats", "class distribution, box sizes and shapes"),
    "phantom": ("implantdet.phantom.command", "render radiographs of known implants, with exact annotations"),
    "predict": ("implantdet.report.command_predict", "find and name the implants in radiographs, by a trained model"),
    "draw": ("implantdet.report.command_draw", "draw annotations and detections on their radiographs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        Exit code: 0; 1 if the input cannot be used, or 130 after Ctrl-C or SIGTERM. Wrong arguments exit with 2.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="implantdet", description="Find dental implants in radiographs and describe them."
    )
    parser.add_argument("--version", action="version", version=f"implantdet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if argv[:1] == [name]:
            import_module(module).add_arguments(command)
    args = parser.parse_args(argv)
    is_main_thread = threading.current_thread() is threading.main_thread()  # others may set no handlers
    if is_main_thread:
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, args.command, warnings.showwarning)
            import_module(COMMANDS[args.command][0]).run(args)
    except DataError as error:
        print(f"implantdet {args.command}: {error.message}", *error.problems, sep="\n  ", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"implantdet {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"implantdet {args.command}: interrupted", file=sys.stderr)
        return 130
    finally:
        if is_main_thread:
            signal.signal(signal.SIGTERM, handler)
    return 0


def _show(
    command: str, usual: Callable[..., None], message: str, category: type[Warning], filename: str, *place: Any
) -> None:
    """Print a warning: of ours, without the code that it came from, beside a progress bar; of others as usual."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        tqdm.write(f"implantdet {command}: {message}", file=sys.stderr)
    else:
        usual(message, category, filename, *place)


if __name__ == "__main__":
    sys.exit(main())
