"""Imports go down the layers only, and some libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rlhfkit"
GROUND = {"errors", "config", "context", "files"}
#: package -> the packages it may import, beside itself
MAY_IMPORT = {
    "data": GROUND,
    "models": GROUND,
    "objectives": GROUND,
    "ui": GROUND,
    "evaluation": GROUND | {"data", "objectives", "scorers"},
    "scorers": GROUND | {"data", "models", "objectives", "engine"},
    "engine": GROUND | {"data", "models", "objectives", "scorers"},
    "world": GROUND,
    "stages": GROUND | {"data", "models", "objectives", "engine", "scorers", "evaluation", "ui", "world"},
}
#: library -> packages that may use it
BELONGS_TO = {
    "click": {"cli", "ui"},
    "rich": {"cli", "ui"},
    "torch.distributed": {"engine"},
    "jinja2": {"data"},
    "matplotlib": {"ui"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of imported modules; what stands under `if TYPE_CHECKING:` is for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)
        yield from imports(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    package = relative.parts[0] if len(relative.parts) > 1 else relative.stem
    for name in imports(ast.parse(path.read_text())):
        if name.startswith("rlhfkit.") and package in MAY_IMPORT:
            target = name.split(".")[1]
            is_version = name.startswith("rlhfkit.__")
            assert target == package or target in MAY_IMPORT[package] or is_version, (
                f"{relative} imports {name}"
            )
        elif name.startswith("rlhfkit.") and package in GROUND:
            assert name.split(".")[1] in GROUND, f"{relative} imports {name}"
        for library, homes in BELONGS_TO.items():
            if name == library or name.startswith(library + "."):
                assert package in homes, f"{relative} uses {library}"


def test_nothing_pickles() -> None:
    for path in MODULES:
        names = set(imports(ast.parse(path.read_text())))
        assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "torch.save(" not in text, path
        assert "allow_pickle" not in text, path
