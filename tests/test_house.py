"""The house stays as the README draws it: each room imports only what is below it, and no function grows too long."""

import ast
import graphlib

from conftest import ROOT

ROOT_MODULES = {"model", "checkpoint", "original", "ops", "utils", "cli"}
# whom the files of each room may import of ours; the modules of the root stand for themselves
MAY_IMPORT = {
    "web": {"web", "photos", "completion", "model", "checkpoint", "ops", "utils", "cli"},
    "photos": {"photos", "completion", "checkpoint", "utils", "cli"},
    "training": {"training", "completion", "model", "checkpoint", "ops", "utils", "cli"},
    "completion": {"completion", "model", "checkpoint", "ops", "utils", "cli"},
    "model": {"checkpoint", "ops", "utils", "cli"},
    "checkpoint": {"original", "utils", "cli"},
    "original": {"utils", "cli"},
    "ops": {"cli"},
    "utils": {"cli"},
    "cli": set(),
}
# without TensorFlow at the top, so that --help and a usage error answer at once
LIGHT = {"photos", "web", "checkpoint", "original", "utils", "cli"}
LIGHT_FILES = {f"completion/{name}.py" for name in ("compositing", "masks", "metrics", "patchmatch", "prior")} | {
    "training/cluster.py",
    "training/launch.py",
}


def ours(tree):
    """The modules that are imported anywhere in a file: "ROOM.FILE" and names of the root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_room_imports_only_what_is_below_it():
    files = [path for path in ROOT.glob("*.py") if path.stem in MAY_IMPORT]
    files += [path for room in MAY_IMPORT for path in (ROOT / room).glob("*.py")]
    scripts = {path.stem for path in ROOT.glob("*.py")} - ROOT_MODULES
    assert len(list(ROOT.glob("*.py"))) <= 14
    graph = {}
    for path in files:
        name, room = str(path.relative_to(ROOT)), path.relative_to(ROOT).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text())
        imported = set(ours(tree))
        rooms = {module.partition(".")[0] for module in imported}
        assert rooms & (MAY_IMPORT.keys() | scripts) <= MAY_IMPORT[room], name
        graph[name.removesuffix(".py").replace("/", ".")] = imported
        if room in LIGHT or name in LIGHT_FILES:
            top = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
            rooms = {module.partition(".")[0] for node in top for module in ours(node)}
            assert not rooms & {"tensorflow", "keras", "ops", "model"}, name
    graphlib.TopologicalSorter(graph).prepare()  # which names a circle


def test_no_function_or_class_is_too_long():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]:  # to look through .venv takes a second
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                limit = 250 if isinstance(node, ast.ClassDef) else 60
                assert node.end_lineno - node.lineno < limit, f"{path}: {node.name}"
