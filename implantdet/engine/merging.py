"""A config file and the options of a command line, merged with errors that say what to change."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from implantdet.config import add_implantdet_config


def merge(cfg: CfgNode, config_file: str, options: Sequence[str]) -> None:
    """Merge a config file, with the files that it is based on, then options, into ``cfg``.

    Whole numbers may stand for decimal ones. Where a word is expected, an option that looks like a number is one:
    folders have such names. YAML that would run code, which Detectron2's ``merge_from_file`` lets through, is an error.

    Args:
        cfg: with every key that may be set; its values say which types they have.
        config_file: path; empty: none.
        options: ``[key, value, …]``.

    Raises:
        ValueError: the file cannot be read, a key is unknown, or a value is of another type.
    """
    if len(options) % 2:
        flags = [word for word in options if word.startswith("--")]
        hint = f"; {' and '.join(flags)} and the like come before the first of them" if flags else ""
        raise ValueError(f"options are pairs of KEY VALUE; found {len(options)} words: {' '.join(options)}{hint}")
    if config_file:
        for key, value in _leaves(cfg, _load(config_file)):
            _set(cfg, key, value, config_file)
    for key, value in zip(options[::2], options[1::2], strict=True):
        _set(cfg, key, value, "option")


def _load(config_file: str) -> dict[str, Any]:
    if not Path(config_file).is_file():
        raise ValueError(f"{config_file}: no such config file")
    try:
        loaded = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        TypeError,
    ) as error:  # yacs: TypeError where YAML holds nothing
        raise ValueError(f"{config_file}: the config cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{config_file}: found {type(loaded).__name__}, expected KEY: VALUE")
    return loaded


def _leaves(cfg: CfgNode, loaded: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and values, of all that is no node of ``cfg``."""
    for name, value in loaded.items():
        if isinstance(value, dict) and isinstance(cfg.get(name), CfgNode):
            yield from _leaves(cfg[name], value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    current: Any = cfg
    for name in key.split("."):
        if not isinstance(current, CfgNode) or name not in current:
            near = get_close_matches(key, [known for known, _ in _leaves(cfg, cfg)], n=1)
            raise ValueError(f"{where}: no key {key}" + "".join(f"; did you mean {match}?" for match in near))
        current = current[name]
    if isinstance(current, float) and type(_literal(value)) is int:
        value = float(value)
    if isinstance(current, str) and isinstance(value, str) and isinstance(_literal(value), int | float):
        value = repr(value)  # yacs takes options as literals
    # yacs lets anything take the place of None, and None that of anything.
    if current is None and not isinstance(_literal(value), bool | int | float | None):
        raise ValueError(f"{where}: {key}: found {value!r}, expected True or False, a number, or None")
    if current is not None and _literal(value) is None and value_of(default_config(), key) is not None:
        raise ValueError(f"{where}: {key}: found nothing, expected {type(current).__name__}, like {current!r} so far")
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        raise ValueError(
            f"{where}: {key}: found {value!r}, expected {type(current).__name__}, like its value so far, {current!r}"
        ) from error


def value_of(cfg: CfgNode, key: str, default: Any = None) -> Any:
    """What a config has under a key with dots; ``default`` if it has no such key."""
    try:
        return attrgetter(key)(cfg)
    except AttributeError:
        return default


def default_config() -> CfgNode:
    """The keys of Detectron2 and of implantdet, as they are before anything is merged."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    return cfg


def _literal(value: Any) -> Any:
    """What a word of the command line stands for."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
