"""The code that a result depends on: the source files a module imports, directly or not, and package versions."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("trl", "tasks")
INIT, REGISTRY = "__init__.py", "registry.py"  # a registry: trl/<folder>/registry.py
INSTALLED = ("tla-robustness", "torch", "torchvision", "pytorch-metric-learning")


def source_files(*modules: str, root: Path = ROOT) -> list[Path]:
    """The source files of `modules` and of everything they import from the packages trl and tasks, sorted.

    Imports inside functions count; those under `if TYPE_CHECKING` do not. A name imported from a package's `__init__`
    counts as the module that defines it, not as the whole package. `__init__` files and registries are left out: they
    only hold names, and a name in a string is not an import. Paths are below `root`. ModuleNotFoundError: one of
    `modules` is neither a module nor a name in one.
    """
    for module in modules:
        if _file(module, root) is None and _file(module.rpartition(".")[0], root) is None:
            raise ModuleNotFoundError(f"no file of {module} below {root}")
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if path is None:  # a name in a module, or one that a package's __init__ re-exports
            package, _, imported = name.rpartition(".")
            home = _file(package, root)
            if home and home.name == INIT:
                waiting += _offered(home.read_text(encoding="utf-8"), package).get(imported, [])
            elif home:
                waiting.append(package)
        elif name not in found and path.name != INIT:
            found[name] = path
            waiting += _imports(path.read_text(encoding="utf-8"), name.rpartition(".")[0])
    return sorted(path for path in found.values() if not (path.name == REGISTRY and path.parent.parent.name == "trl"))


def imported_modules(path: Path) -> list[str]:
    """Everything a file of this project imports: modules, and `module.name` for each name imported from one."""
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return _imports(path.read_text(encoding="utf-8"), package)


def source_digest(*modules: str, root: Path = ROOT) -> str:
    """A hash of the `source_files`: their paths below `root` and their contents."""
    found = hashlib.blake2b(digest_size=12)
    for path in source_files(*modules, root=root):
        content = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def version(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of this package and of the packages that its models and attacks use."""
    return {package: version(package) for package in INSTALLED}


def _file(module: str, root: Path) -> Path | None:
    """The file of a module in PACKAGES; None if there is no such module."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / INIT, path.with_suffix(".py")) if file.is_file()), None)


@cache
def _imports(source: str, package: str) -> list[str]:
    """Modules that `source`, a file of `package`, imports, and `module.name` for each name imported from one."""
    return [name for node in _running(ast.parse(source)) for name in _names(node, package)]


@cache
def _offered(source: str, package: str) -> dict[str, list[str]]:
    """For each name that the `source` of a package's __init__ imports, the modules that it may come from."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: [module := _names(node, package)[0], f"{module}.{alias.name}"]
        for node in nodes
        for alias in node.names
    }


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` that can run; code for type checkers is left out."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        below: list[ast.stmt] | Iterator[ast.AST] = node.orelse
    else:
        below = ast.iter_child_nodes(node)
    for child in below:
        yield from _running(child)


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []
