"""Digests of custom code: the modules of the classes that a config names, and their imports outside site-packages."""

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import sft_lightning
from sft_lightning.data.digests import digest_file

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {
    Path(sft_lightning.__file__).resolve().parent
}


def digest_code(values: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each custom module that settings lead to, by the module's name.

    Args:
        values: Values of settings; those that name a class or function of an imported module are followed.
    """
    digests: dict[str, str] = {}
    waiting = [value for value in values if value.partition(".")[0] in sys.modules and "." in value]
    visited: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        for module, file, is_package in _find_modules(name):
            if module not in digests:
                digests[module] = digest_file(file)
                waiting += _read_imports(file, module if is_package else module.rpartition(".")[0])
    return digests


def _find_modules(name: str) -> Iterator[tuple[str, Path, bool]]:
    """Yield the custom modules that importing a dotted name runs: name, file, and whether it is a package.

    This imports nothing, as an import inside a function may not be safe to run now.
    """
    module, path = "", None
    for piece in name.split("."):
        module = f"{module}.{piece}" if module else piece
        try:
            spec: ModuleSpec | None = PathFinder.find_spec(module, path)
        except (ImportError, ValueError, OSError):
            spec = None
        if spec is None:
            return
        path = spec.submodule_search_locations
        if spec.has_location and spec.origin is not None:
            file = Path(spec.origin).resolve()
            if any(folder in file.parents for folder in _INSTALLED) or {"site-packages", "dist-packages"} & {
                *file.parts
            }:
                return
            yield module, file, path is not None


def _read_imports(file: Path, package: str) -> Iterator[str]:
    """Yield the dotted names that the import statements of a file may refer to."""
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
