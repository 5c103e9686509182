"""The house stays as the README draws it: nothing imports upwards, and nothing grows too long to be read."""

import ast

import pytest
from conftest import ROOT

ROWS = [
    ["cli"],
    ["checkpoint", "cluster", "dataset", "masks", "metrics", "ops", "utils"],
    ["model"],
    ["encoder"],
    ["team", "training", "runs", "formats", "search", "blend", "faces", "photos", "retouch"],
    ["align", "inputs", "server", "jobs", "guard", "preview"],
    ["train-dcgan", "train-encoder", "complete", "sample", "export", "paint"],
]
WITHOUT_TENSORFLOW = ["cli", "utils", "faces", "masks", "metrics", "blend", "photos", "align", "inputs"]
WITHOUT_TENSORFLOW += ["retouch", "preview", "guard", "jobs", "server", "paint", "cluster"]
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("page/*.js")])


def imports(tree):
    """The names of all modules that are imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_nothing_is_imported_upwards_or_in_a_circle():
    row_of = {name: i for i, names in enumerate(ROWS) for name in names}
    assert set(row_of) == {path.stem for path in ROOT.glob("*.py")}
    graph = {name: set(imports(ast.parse((ROOT / f"{name}.py").read_text()))) for name in row_of}
    for name, imported in graph.items():
        assert all(row_of[other] <= row_of[name] for other in imported & set(row_of)), name
        assert name not in WITHOUT_TENSORFLOW or not imported & {"tensorflow", "keras"}, name
    assert "utils" not in graph["ops"] and "ops" not in graph["utils"]
    left = {name: imported & set(row_of) for name, imported in graph.items()}
    while free := [name for name, imported in left.items() if not imported & set(left)]:
        left = {name: imported for name, imported in left.items() if name not in free}
    assert not left, f"a circle: {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_too_long(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (320 if path.name == "model.py" else 400)
    for node in ast.walk(ast.parse(text if path.suffix == ".py" else "")):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            limit = 250 if isinstance(node, ast.ClassDef) else 60
            assert node.end_lineno - node.lineno + 1 <= limit, node.name
