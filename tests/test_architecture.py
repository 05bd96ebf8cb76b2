"""Imports obey the table in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib" / "hermes"

# Higher layers may import lower ones; parts of one layer never import each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "types"}),
    frozenset({"labels", "geometry"}),
    frozenset({"config", "records", "phantoms"}),
    frozenset({"transforms", "model", "device"}),
    frozenset({"checkpoint", "cache", "published", "labelled", "dicom"}),
    frozenset({"inference", "training", "scoring", "strategies", "campaign", "submission", "offered"}),
    frozenset({"publish"}),
    frozenset({"workspace"}),
    frozenset({"resident", "queueing", "rounds"}),
    frozenset({"pool", "starter", "importing", "pacs", "report"}),
    frozenset({"simulation"}),
    frozenset({"adapters", "serve"}),
    frozenset({"demo", "cli", "docs"}),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
ONLY_ADAPTERS = {"monailabel", "fastapi", "starlette"}
NO_TORCH = {
    "labels",
    "records",
    "strategies",
    "campaign",
    "config",
    "geometry",
    "errors",
    "types",
    "phantoms",
    "submission",
    "dicom",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


def imported(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_part_has_a_layer() -> None:
    assert {part for part, _ in modules()} <= set(LEVEL)


@pytest.mark.parametrize(
    ("part", "path"), list(modules()), ids=lambda v: str(v) if isinstance(v, str) else v.stem
)
def test_imports_go_down(part: str, path: Path) -> None:
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] != "hermes" or len(pieces) == 1:
            continue
        other = pieces[1]
        if other != part:
            assert LEVEL[other] < LEVEL[part], f"{path.name} of {part} imports {name}"


@pytest.mark.parametrize(
    ("part", "path"), list(modules()), ids=lambda v: str(v) if isinstance(v, str) else v.stem
)
def test_monailabel_is_imported_in_adapters_only(part: str, path: Path) -> None:
    if part in ("adapters", "serve", "demo"):
        return  # serve and demo start it and talk to it: inside functions, checked below
    assert not {name.split(".")[0] for name in imported(path)} & ONLY_ADAPTERS, path


@pytest.mark.parametrize("name", ["serve.py", "demo.py"])
def test_commands_import_monailabel_only_when_they_need_it(name: str) -> None:
    found = {module.split(".")[0] for module in imported(PACKAGE / name, top_level_only=True)}
    assert not found & ONLY_ADAPTERS


def test_light_parts_load_without_torch() -> None:
    parts = ", ".join(f"hermes.{part}" for part in sorted(NO_TORCH))
    code = f"import sys, {parts}; sys.exit('torch' in sys.modules or 'monailabel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_core_loads_without_monailabel_and_itk() -> None:
    code = (
        "import sys, hermes.rounds, hermes.pool, hermes.published, hermes.strategies;"
        "sys.exit(bool({'monailabel', 'itk', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_app_is_one_class_directly_below_monailabels() -> None:
    tree = ast.parse((ROOT / "apps" / "hermes" / "main.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [c.name for c in classes] == ["HermesApp"]
    assert [ast.unparse(base) for base in classes[0].bases] == ["MONAILabelApp"]


def test_no_dumping_grounds() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if p.stem in ("utils", "helpers", "misc", "common")]
