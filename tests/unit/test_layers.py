"""Who may import whom, read from the source: the table of CONTRIBUTING.md, without exceptions.

Imports inside functions and under TYPE_CHECKING count too: an arrow that points up is one wherever
it is written.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import samforge

ROOT = Path(samforge.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LIBRARY = {
    *("core", "models", "transform", "backends", "media", "formats", "draw", "runtime"),
    *("measure", "report"),
}
MAY_IMPORT = {
    "core": {"core"},
    "models": {"models", "core"},
    "backends": {"backends", "core"},
    "media": {"media", "core"},
    "formats": {"formats", "media", "core"},
    "draw": {"draw", "core"},
    "runtime": {"runtime", "core"},
    "transform": {"transform", "models", "core"},
    "measure": {"measure", "core", "runtime"},
    "report": {"report", "measure", "core"},
    "steps": LIBRARY | {"steps"},
    "pipeline": LIBRARY | {"steps"},
    # Sessions inside other people's pipelines.
    "integrations": LIBRARY | {"integrations", "assembly"},
    # session_from_bundle for `samforge.load`: a second file that puts layers together.
    "assembly": LIBRARY,
    # What users do with bundles, for the command line and everybody else.
    "workflows": LIBRARY | {"workflows", "assembly", "pipeline", "steps"},
    "rasters": {"rasters", "runtime", "formats", "media", "workflows", "assembly", "core"},
    "labelling": {
        *("labelling", "runtime", "formats", "media", "draw", "workflows", "assembly", "core"),
    },
    # A server without a wire.
    "serving": {"serving", "runtime", "formats", "media", "workflows", "assembly", "core"},
}

DOORS = {
    "samforge",
    *("samforge.draw", "samforge.formats", "samforge.labelling", "samforge.measure"),
    *("samforge.media", "samforge.pipeline", "samforge.rasters", "samforge.report"),
    *("samforge.runtime", "samforge.serving", "samforge.transform"),
}
"""What apps come in by, beside the verbs of workflows and the types of core."""

BUILDERS = {"models", "transform", "steps", "pipeline", "backends/torch.py", "backends/inductor"}
# Upstream's models are torch modules, and what takes the place of their backbone is one too.
# runtime/device keeps images and features on the GPU that torch holds them on.
TORCH = BUILDERS | {"integrations/sam3d_body.py", "runtime/device"}
ONLY_IN = {
    "torch": TORCH,
    "torchao": BUILDERS,
    "transformers": BUILDERS,
    "onnx": BUILDERS,
    "onnxscript": BUILDERS,
    "onnx_ir": BUILDERS,
    "typer": {"apps"},
    "click": {"apps"},
    "rich": {"apps"},
    "torchvision": set(),
    "cv2": set(),
}
CORE_AT_IMPORT = {"numpy"}
CORE_IN_FUNCTIONS = {"numpy", "pycocotools", "supervision"}

PROCESS_WIDE = {
    "torch.manual_seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_float32_matmul_precision",
    "torch.set_grad_enabled",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
    "numpy.random.seed",
    "np.random.seed",
    "random.seed",
    "logging.basicConfig",
    "os.putenv",
    "os.chdir",
    "os.umask",
}


# An application may say how its process shows warnings; the hook is the documented way.
APP_HOOKS = {"warnings.showwarning"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One imported module or name, dotted, and whether it happens when the file is imported."""

    name: str
    line: int
    at_import: bool


def _imports(tree: ast.AST, at_import: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name=alias.name, line=node.lineno, at_import=at_import)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield Import(name=name, line=node.lineno, at_import=at_import)
        else:
            deferred = isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            ) or _is_type_checking(node)
            yield from _imports(node, at_import and not deferred)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _layer(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@lru_cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_layers(path: Path) -> None:
    layer = _layer(path)
    if layer in ("__init__", "__main__"):
        return
    assert layer in MAY_IMPORT or layer == "apps", f"the table has no layer {layer!r}"
    for imported in _imports(_parsed(path)):
        parts = imported.name.split(".")
        if parts[0] != "samforge":
            continue
        place = f"{_name(path)}:{imported.line} imports {imported.name}"
        if layer == "apps":
            _check_public(parts, place)
        else:
            assert len(parts) > 1, f"{place}: the public door is for users"
            assert parts[1] in MAY_IMPORT[layer], f"{place}; {layer} may not"


def _files_of(name: str) -> str | None:
    """Which file ``package.module.attribute`` comes from."""
    for end in (name, name.rpartition(".")[0]):
        if end in MODULES:
            return end
    return None


def _module(path: Path) -> str:
    parts = ("samforge", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def test_no_circle_of_files() -> None:
    """Imports in functions and under TYPE_CHECKING count: they hide a circle, and are one."""
    needs = {
        name: {_files_of(i.name) for i in _imports(_parsed(path))} - {None, name}
        for name, path in MODULES.items()
    }
    assert ("samforge.runtime", "samforge.runtime.segmenter") in {
        (name, one) for name, found in needs.items() for one in found
    }
    TopologicalSorter(needs).prepare()  # raises CycleError with the files of one


def _check_public(parts: list[str], place: str) -> None:
    private = [part for part in parts if part.startswith("_") and part != "__version__"]
    assert not private, f"{place}: that is private"
    name, inside = ".".join(parts), parts[1:2]
    # The app's own files, the verbs and the types that everybody speaks, one file each.
    if inside in (["apps"], ["core"], ["workflows"]) or name in DOORS:
        return
    door, _, taken = name.rpartition(".")
    assert door in DOORS, f"{place}: apps come in by {', '.join(sorted(DOORS))}"
    assert taken in _at_door(door), f"{place}: {taken} is not in {door}.__all__"


@lru_cache
def _at_door(door: str) -> frozenset[str]:
    """The names of its ``__all__``."""
    for node in _parsed(MODULES[door]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError(f"{door} has no __all__")


def test_the_door_imports_only_the_version() -> None:
    at_import = {i.name for i in _imports(_parsed(ROOT / "__init__.py")) if i.at_import}
    assert {name for name in at_import if name.startswith("samforge")} == {
        "samforge.core.version.__version__"
    }
    others = {name.split(".")[0] for name in at_import} - {"samforge"}
    assert others <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_third_parties(path: Path) -> None:
    name, layer = _name(path), _layer(path)
    for imported in _imports(_parsed(path)):
        package = imported.name.split(".")[0]
        place = f"{name}:{imported.line} imports {imported.name}"
        allowed = ONLY_IN.get(package)
        places = {layer, name, Path(name).parent.as_posix()}
        assert allowed is None or places & allowed, f"{place}; not for {layer}"
        if layer == "core" and package not in {"samforge", *sys.stdlib_module_names}:
            permitted = CORE_AT_IMPORT if imported.at_import else CORE_IN_FUNCTIONS
            assert package in permitted, f"{place}; core takes numpy"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nobody_patches_or_sets_what_is_imported(path: Path) -> None:
    tree = _parsed(path)
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    found = [
        f"{_name(path)}:{target.lineno} sets {ast.unparse(target)}"
        for target in _set_targets(tree)
        if _root(target) in imported
        and not (_layer(path) == "apps" and ast.unparse(target) in APP_HOOKS)
    ]
    if _layer(path) != "apps":
        found += [
            f"{_name(path)}:{call.lineno} calls {ast.unparse(call.func)}"
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func) in PROCESS_WIDE
        ]
    assert not found


def _set_targets(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            yield from (t for t in node.targets if isinstance(t, ast.Attribute | ast.Subscript))
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            if isinstance(node.target, ast.Attribute | ast.Subscript):
                yield node.target
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield node.args[0]


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import torch", [("torch", False)]),
        ("if TYPE_CHECKING:\n    from a.b import c", [("a.b.c", False)]),
        ("class A:\n    import os", [("os", True)]),
        ("try:\n    import x\nexcept ImportError:\n    import y", [("x", True), ("y", True)]),
    ],
)
def test_the_reader_sees_imports(source: str, expected: list[tuple[str, bool]]) -> None:
    assert [(i.name, i.at_import) for i in _imports(ast.parse(source))] == expected


def test_the_reader_sees_patches() -> None:
    source = (
        "Sam3Model.forward = f\ntorch.backends.x.y = 1\nos.environ['A'] = 'b'\nsetattr(m, 'a', 1)"
    )
    assert [_root(t) for t in _set_targets(ast.parse(source))] == ["Sam3Model", "torch", "os", "m"]
