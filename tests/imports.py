"""Which modules of the project a module imports, read from the source."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "segloc")


def source_of(module):
    """File of a module or package, None if there is none."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def modules():
    """Names of all modules of both packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(module):
    """Everything `module` imports by name, ours and others', at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(source_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            # `from package import module` imports the module too.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def closure(module):
    """Files of `module` and of all our modules it leads to, relative to the root."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
        for part in parents:
            if part in seen or source_of(part) is None:
                continue
            seen.add(part)
            waiting += [other for other in imported(part) if other.split(".")[0] in PACKAGES]
    return {source_of(name).relative_to(ROOT).as_posix() for name in seen}
