"""The rooms of the house: who may import whom, and that importing anything does nothing."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "imgtool"

# A room imports from lower floors and from itself, never from another room of its own floor.
FLOOR = {
    "model": 0,
    "xml": 1,
    "plan": 1,
    "host": 2,
    "stores": 3,
    "engine": 4,
    "api": 5,
    "cli": 6,
    "testing": 7,
    "": 8,  # imgtool itself: what it offers its users, and the entry point
}

# Everything that is not in the standard library, and the one module or room that may import it.
HOME_OF = {
    "lxml": "imgtool.xml",
    "sh": "imgtool.host.qemu_img",
    "libvirt": "imgtool.stores.libvirt",
    "hypothesis": "imgtool.testing",
    "pytest": "imgtool.testing",
}

# Planning is a function of its arguments: no files, no processes, no clock, no chance.
IMPURE = {
    *("shutil", "tempfile", "subprocess", "socket", "threading"),
    *("time", "datetime", "random", "secrets"),
}
# The few parts of os that only handle a name, given absolute paths.
OS_ABOUT_NAMES = {
    *("os.fspath", "os.fsencode", "os.fsdecode", "os.PathLike", "os.path"),
    *("os.path.relpath", "os.path.normpath"),
}
PURE_ROOMS = {"model", "xml", "plan"}

# What a module may call while it is imported: it makes a value and touches nothing. So does a
# class; and so does a pure room's own function, which has nothing to touch.
VALUE_MAKERS = {
    *("tuple", "frozenset", "range", "len", "bytes.fromhex", "str.maketrans"),
    *("re.compile", "timedelta"),
}

Complaints = Iterator[str]


def within(module: str, home: str) -> bool:
    return module == home or module.startswith(f"{home}.")


def room_of(module: str) -> str:
    """imgtool.xml.domain -> xml; imgtool and imgtool.__main__ -> ''."""
    room = module.removeprefix("imgtool").removeprefix(".").partition(".")[0]
    return "" if room == "__main__" else room


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of each import at any depth; name is '' for a plain `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                submodule = module == "imgtool" and alias.name in FLOOR
                yield (f"imgtool.{alias.name}", "") if submodule else (module, alias.name)


def imports_upward(module: str, tree: ast.Module) -> Complaints:
    """Imports from the same or a higher floor, other than from the module's own room."""
    room = room_of(module)
    for target, name in imports(tree):
        other = room_of(target)
        if target.startswith("."):
            yield f"relative import of {target}{name}: write it out"
        elif not within(target, "imgtool") or other == room or name == "__version__":
            continue
        elif other not in FLOOR:
            yield f"imports {target}: {other} is no room"
        elif FLOOR[other] >= FLOOR[room]:
            yield f"{room or 'imgtool'} (floor {FLOOR[room]}) imports {target} ({FLOOR[other]})"


def imports_private_names(module: str, tree: ast.Module) -> Complaints:
    """Names with an underscore that belong to another module."""
    for target, name in imports(tree):
        if within(target, "imgtool"):
            parts = [*target.split(".")[1:], name]
            for part in parts:
                if part.startswith("_") and not part.endswith("__"):
                    yield f"imports {part}, which is private to {target}"


def imports_foreign_libraries(module: str, tree: ast.Module) -> Complaints:
    """Libraries outside their home, or that have none."""
    for target, _ in imports(tree):
        library = target.partition(".")[0]
        if library in sys.stdlib_module_names or library in {"imgtool", ""}:
            continue
        if not within(module, HOME_OF.get(library, "nowhere")):
            yield f"imports {library}, which belongs in {HOME_OF.get(library, 'no module')}"


def touches_the_world(module: str, tree: ast.Module) -> Complaints:
    """What a pure room has no use for."""
    if room_of(module) not in PURE_ROOMS:
        return
    for target, name in imports(tree):
        if target.partition(".")[0] in IMPURE or (target.partition(".")[0] == "os" and name):
            yield f"imports {target} in a room that is pure"
    for node in ast.walk(tree):
        used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if used.startswith("os.") and used not in OS_ABOUT_NAMES:
            yield f"uses {used} in a room that is pure"


def works_when_imported(module: str, tree: ast.Module) -> Complaints:
    """Statements at module level that do something, and names there that could be state."""
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.ClassDef() | ast.Expr(value=ast.Constant()):
                continue
            case ast.If(test=test) if ast.unparse(test) in (
                "TYPE_CHECKING",
                "__name__ == '__main__'",
            ):
                continue
            case ast.Assign(targets=targets, value=value):
                yield from (
                    complaint
                    for target in targets
                    for name in ast.walk(target)
                    if not isinstance(name, ast.Tuple | ast.expr_context)
                    for complaint in not_a_constant(module, ast.unparse(name), value)
                )
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                yield from not_a_constant(module, name, value)
            case _:
                yield f"line {node.lineno}: does work when imported: {ast.unparse(node)[:60]}"


def not_a_constant(module: str, name: str, value: ast.expr | None) -> Complaints:
    if room_of(module) == "testing":
        return  # hypothesis strategies: lazy values that are made by calls
    if not name.strip("_")[:1].isupper() and not name.startswith("__"):
        yield f"{name} is state: a constant or a type has a capital letter"
    for call in ast.walk(value or ast.Constant(None)):
        if isinstance(call, ast.Call) and not makes_a_value(module, ast.unparse(call.func)):
            yield f"{name} calls {ast.unparse(call.func)} when imported"


def makes_a_value(module: str, function: str) -> bool:
    own = "." not in function and not hasattr(builtins, function)
    is_class = function.rpartition(".")[2].lstrip("_")[:1].isupper()
    return function in VALUE_MAKERS or is_class or (own and room_of(module) in PURE_ROOMS)


def talks(module: str, tree: ast.Module) -> Complaints:
    """print and sys.exit outside the command line and the entry point."""
    if room_of(module) in {"cli", "testing", ""}:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.exit", "exit"}:
            yield f"line {node.lineno}: only the command line may {ast.unparse(node.func)}"


def keeps_state(module: str, tree: ast.Module) -> Complaints:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"


Rule = Callable[[str, ast.Module], Complaints]
RULES: list[Rule] = [
    imports_upward,
    imports_private_names,
    imports_foreign_libraries,
    touches_the_world,
    works_when_imported,
    talks,
    keeps_state,
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_a_module_keeps_to_its_room(path: Path) -> None:
    module, tree = name_of(path), ast.parse(path.read_text())
    assert room_of(module) in FLOOR
    assert [complaint for rule in RULES for complaint in rule(module, tree)] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("imgtool.model.image", "from imgtool.xml.safe import parse", "floor 0"),
        ("imgtool.model.image", "from imgtool import xml", "floor 0"),
        ("imgtool.model.image", "from imgtool import snapshot", "floor 0"),
        ("imgtool.xml.domain", "import imgtool.plan.snapshot", "floor 1"),
        ("imgtool.plan.snapshot", "def f():\n  from imgtool.xml import safe", "floor 1"),
        ("imgtool.api", "from imgtool.cli.main import main", "floor 5"),
        ("imgtool.cli.main", "from imgtool.testing import images", "floor 6"),
        ("imgtool.xml.domain", "from .safe import parse", "relative import"),
        ("imgtool.xml.domain", "from imgtool.util import f", "no room"),
        ("imgtool.testing.images", "from imgtool.host.files import _sync", "private"),
        ("imgtool.testing.images", "from imgtool.host._posix import sync", "private"),
        ("imgtool.stores.directory", "from lxml import etree", "imgtool.xml"),
        ("imgtool.host.files", "import sh", "imgtool.host.qemu_img"),
        ("imgtool.stores.libvirt_events", "import libvirt", "imgtool.stores.libvirt"),
        ("imgtool.cli.main", "import click", "no module"),
        ("imgtool.plan.snapshot", "import random", "pure"),
        ("imgtool.plan.snapshot", "from os import path", "pure"),
        ("imgtool.plan.snapshot", "import os\ndef f(): os.unlink('x')", "os.unlink"),
        ("imgtool.plan.snapshot", "import os\ndef f(): os.path.exists('x')", "os.path.exists"),
        ("imgtool.host.files", "cache = {}", "state"),
        ("imgtool.host.files", "A, (B, cache) = 1, (2, {})", "cache is state"),
        ("imgtool.host.files", "os.environ['LANG'] = 'C'", "state"),
        ("imgtool.host.files", "UMASK = os.umask(0)", "calls os.umask"),
        ("imgtool.host.files", "TABLE = {'a': [open('x')]}", "calls open"),
        ("imgtool.host.files", "TABLE = row(1)", "calls row"),
        ("imgtool.plan.table", "TABLE = open('x')", "calls open"),
        ("imgtool.host.files", "os.umask(0o77)", "does work"),
        ("imgtool.host.files", "for x in y: pass", "does work"),
        ("imgtool.host.files", "try:\n  import a\nexcept ImportError:\n  a = 1", "does work"),
        ("imgtool.api", "def f(): print()", "print"),
        ("imgtool.engine.journal", "def f(): sys.exit(1)", "sys.exit"),
        ("imgtool.engine.journal", "def f():\n  global x", "global x"),
    ],
)
def test_the_rules_see_what_breaks_them(module: str, source: str, complaint: str) -> None:
    tree = ast.parse(source)
    complaints = [found for rule in RULES for found in rule(module, tree)]
    assert complaint in " ".join(complaints)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imgtool.stores.libvirt", "def f():\n  import libvirt"),
        ("imgtool.host.qemu_img", "import sh"),
        ("imgtool.engine.redo", "from imgtool.stores.base import DomainStore"),
        ("imgtool.engine.redo", "from imgtool.engine import journal"),
        ("imgtool.testing.demo", "from imgtool.cli.main import main"),
        ("imgtool.testing.images", "names = st.text(min_size=1)"),
        ("imgtool.cli.main", "from imgtool import __version__, api"),
        ("imgtool", "def __getattr__(name):\n  from imgtool import api"),
        ("imgtool.plan.names", "import os\ndef f(): os.path.relpath('/a', os.fspath(b))"),
        ("imgtool.plan.table", "TABLE = (_row(1), Row(2), table.Row(3))"),
        ("imgtool.host.qcow2", "DIRTY, CORRUPT = (1 << bit for bit in range(2))"),
        ("imgtool.xml.spans", '__all__ = ["a"]\n_TAG: Final = re.compile(rb"<")\nName = str'),
    ],
)
def test_the_rules_allow_what_is_right(module: str, source: str) -> None:
    tree = ast.parse(source)
    assert [found for rule in RULES for found in rule(module, tree)] == []


def test_importing_everything_is_quiet() -> None:
    """No output, no warning, no thread, for every module that needs only what imgtool requires."""
    modules = [name_of(path) for path in sorted(PACKAGE.rglob("*.py"))]
    needed = [name for name in modules if room_of(name) != "testing"]
    program = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert 'libvirt' not in sys.modules, 'libvirt is to be imported where it is used'\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *needed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
