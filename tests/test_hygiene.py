"""The promises that the code makes about itself: order of imports, sizes, annotations, no key that nobody reads."""

import ast
import re
import statistics
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from implantdet.config import add_implantdet_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "implantdet"
# Imports go from a later row to an earlier one, or stay in their row.
ROWS = (
    {"taxonomy", "structures", "config"},
    {"data", "phantom", "assembly", "modeling"},
    {"evaluation"},
    {"engine"},
    {"report", "cli"},
)


def sources(folder=PACKAGE):
    return sorted(folder.rglob("*.py"))


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources()}


def imports_of(path):
    """Names of the package's own modules that a file imports, wherever in the file it does."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in MODULES:
                    yield name
                elif node.module in MODULES:
                    yield node.module


def row_of(module):
    room = module.split(".")[1]
    rows = [index for index, rooms in enumerate(ROWS) if room in rooms]
    assert rows, f"{module} is in no room of the design"
    return rows[0]


def functions():
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module_name(path)}.{node.name}", node


def lines_of_code(node):
    docstring = ast.get_docstring(node, clean=False)
    length = node.end_lineno - node.lineno + 1
    return length - (docstring.count("\n") + 1 if docstring else 0)


def line_count(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_imports_keep_the_order_of_the_rooms():
    wrong = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        if module != "implantdet"
        for target in imports_of(path)
        if target != "implantdet" and row_of(target) > row_of(module)
    ]
    assert not wrong


def test_no_import_cycles():
    graph = {module: set(imports_of(path)) - {module, "implantdet"} for module, path in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_depth_and_file_sizes():
    lengths = {module: line_count(path) for module, path in MODULES.items() if path.name != "__init__.py"}
    assert max(module.count(".") for module in MODULES) <= 2
    assert statistics.median(lengths.values()) <= 150
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_function_sizes():
    lengths = {name: lines_of_code(node) for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > 80} == {}
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= 50


def test_arguments_are_annotated():
    arguments = [
        argument
        for _, node in functions()
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.arg not in ("self", "cls")
    ]
    annotated = sum(argument.annotation is not None for argument in arguments)
    assert annotated >= 0.9 * len(arguments)


def test_tests_are_long_enough_for_the_code():
    code = sum(map(line_count, sources()))
    tests = sum(map(line_count, sources(ROOT / "tests")))
    assert tests >= 0.6 * code


def test_door_and_readme_are_short():
    assert line_count(ROOT / "train_net.py") <= 90
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"\s*(make|python|implantdet) ", line) for line in readme[:25])


def config_keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from config_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def added_keys():
    theirs, ours = get_cfg(), get_cfg()
    add_implantdet_config(ours)
    return sorted(set(config_keys(ours)) - set(config_keys(theirs)))


@cache
def attributes():
    paths = [*(path for path in sources() if path.name != "config.py"), ROOT / "train_net.py"]
    nodes = (node for path in paths for node in ast.walk(tree(path)))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("key", added_keys())
def test_every_config_key_is_read(key):
    node, name = key.rsplit(".", 1)[0].rsplit(".", 1)[-1], key.rsplit(".", 1)[-1]
    # Either cfg.….NODE.KEY, or .KEY of a local name for the node; messages that name it do not read it.
    assert any(re.search(rf"\b(?:{node}|{node.lower()})\.{name}$", read) for read in attributes()), (
        f"nobody reads {key}"
    )


def test_every_config_key_is_explained():
    lines = (PACKAGE / "config.py").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"    cfg\.[A-Z_.]+ = (?!CfgNode)", line):
            assert "#" in line or lines[number - 1].lstrip().startswith("#"), f"config.py:{number + 1} has no comment"


def test_everything_public_is_used_by_the_package_itself():
    """Tests alone keep nothing alive: what the commands and train_net.py do not reach is missing for the user."""
    nodes = [node for path in (*sources(), ROOT / "train_net.py") for node in ast.walk(tree(path))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    defined = {
        node.name: path
        for path in sources()
        for node in tree(path).body
        # Decorated ones are registered, and found by their name in a config.
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list
    }
    assert len(defined) > 200
    for_other_projects = {"load_backbone_weights"}  # which have no checkpointer of ours
    assert {name: path.name for name, path in defined.items() if name not in used | for_other_projects} == {}


def test_no_top_level_side_effects():
    """Importing a module defines things; it runs nothing but definitions, registrations and constants."""
    for path in sources():
        for node in tree(path).body:
            allowed = isinstance(
                node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign
            )
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            guard = isinstance(node, ast.If | ast.Try) and (
                path.name == "__init__.py" or "TYPE_CHECKING" in ast.dump(node) or "'__main__'" in ast.dump(node)
            )
            assert allowed or docstring or guard, f"{path}:{node.lineno} runs at import"
