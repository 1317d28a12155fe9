# SPDX-License-Identifier: Apache-2.0
"""Rooms stand on floors: which room of the package imports which.

A room is a folder or a file right under `redknot_sglang/`. `FLOORS` is the table of allowed arrows, and `docs/structures.md`
shows the same one with what each room holds. Imports inside functions and under `TYPE_CHECKING` count like all others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import redknot_sglang

PACKAGE = Path(redknot_sglang.__file__).resolve().parent
STRUCTURES = PACKAGE.parent / "docs" / "structures.md"
ROOT = "__init__"
# Parts of the repository beside the package, which a wheel does not carry.
BESIDE = ("eval", "tests", "examples")

# Ground first: a room may import the rooms behind its colon, all of them in rows above its own; `sglang` is SGLang itself.
FLOORS = """
__init__:
errors:
versions: errors
refuse: errors
work_file:
cpu:
chains:
config:
active: config
heads: __init__ errors
kernels:
certificate: errors config heads
plan: errors config heads
flags: errors config plan
seams: sglang errors versions heads
pool: errors refuse config heads kernels plan seams
store: errors plan
radix: plan seams pool store
placement: heads plan seams pool radix
reuse: errors heads kernels plan seams pool radix
batches: kernels plan
forwards:
draft_attention: seams
attention: active heads kernels plan seams pool reuse batches forwards
report: __init__ errors heads certificate
serve: __init__ errors versions config active heads certificate plan seams pool store report
hooks: __init__ errors versions refuse cpu chains config active heads kernels certificate plan flags seams pool store radix placement reuse batches draft_attention attention serve
measure: __init__ errors
profile: __init__ errors work_file heads measure
certify: __init__ errors versions work_file config heads certificate plan measure
route: errors config plan
plugin: cpu seams hooks
start_memory: errors active seams pool plugin
cli: __init__ errors versions cpu config heads kernels certificate seams measure profile certify report route plugin start_memory
"""


@dataclass(frozen=True)
class Arrow:
    """One import: file under the package, line, module that is imported, and the rooms at both ends."""

    file: str
    line: int
    module: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"redknot_sglang/{self.file}:{self.line}: {self.source} -> {self.target} ({self.module})"


def arrows(package: Path) -> Iterator[Arrow]:
    """All imports of a package that leave a room of it, and those of SGLang."""
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        source = relative.parts[0].removesuffix(".py")
        # The stand-in for `sgl_kernel` is not part of the package: it is put in front on `sys.path`.
        if source == "_stub":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for module in modules(node, package, relative):
                target = _room(module, package)
                if target not in (None, source):
                    yield Arrow(relative.as_posix(), getattr(node, "lineno", 0), module, source, str(target))


def modules(node: ast.AST, package: Path, relative: Path) -> Iterator[str]:
    """Full names of the modules that a statement of the file `relative` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = (package.name, *relative.parts[:-1])[: len(relative.parts) - node.level + 1]
            base = ".".join((*parents, base) if base else parents)
        # What is taken from the package itself are its rooms.
        yield from (f"{base}.{alias.name}" for alias in node.names) if base == package.name else (base,)


def _room(module: str, package: Path) -> str | None:
    """The room that a module lies in, `sglang`, a part beside the package, or None for other libraries."""
    first, *rest = module.split(".")
    if first == package.name:
        named = rest[0] if rest else ROOT
        return named if (package / named).is_dir() or (package / f"{named}.py").is_file() else ROOT
    return first if first == "sglang" or first in BESIDE else None


def read(text: str) -> dict[str, list[str]]:
    """Rows of `FLOORS`: the rooms that each room may import."""
    rows = (line.split(":") for line in text.strip().splitlines())
    return {room: allowed.split() for room, allowed in rows}


def violations(package: Path, floors: Mapping[str, list[str]]) -> list[str]:
    """Arrows that the table does not have."""
    return [str(arrow) for arrow in arrows(package) if arrow.target not in floors.get(arrow.source, ())]


def circles(graph: Mapping[str, list[str]]) -> list[list[str]]:
    """Ways that lead from a room back to itself, one for each that is found first."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(room: str, way: list[str]) -> None:
        if room in way:
            found.append([*way[way.index(room) :], room])
        elif room not in done:
            for target in graph.get(room, ()):
                visit(target, [*way, room])
            done.add(room)

    for room in graph:
        visit(room, [])
    return found


def rooms(package: Path) -> set[str]:
    """Folders with Python files in them, and files."""
    folders = {path.name for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    return folders | {path.stem for path in package.glob("*.py")}


def test_every_import_is_an_arrow_of_the_table() -> None:
    found = violations(PACKAGE, read(FLOORS))
    assert not found, "\n".join(["imports that the table does not allow:", *found])


def test_every_room_has_a_row_and_every_row_a_room() -> None:
    assert set(read(FLOORS)) == rooms(PACKAGE)


def test_rooms_import_rooms_of_earlier_rows_only() -> None:
    floors = read(FLOORS)
    earlier = {"sglang"}
    for room, allowed in floors.items():
        assert set(allowed) <= earlier, f"{room} imports {sorted(set(allowed) - earlier)} of its own floor or above"
        earlier.add(room)


def test_there_is_no_circle() -> None:
    graph: dict[str, list[str]] = {}
    for arrow in arrows(PACKAGE):
        graph.setdefault(arrow.source, []).append(arrow.target)
    found = circles(graph)
    assert not found, "\n".join(" -> ".join(way) for way in found)


def test_the_document_shows_this_table() -> None:
    section = STRUCTURES.read_text().split("\n## Floors\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    shown = {}
    for room, holds, allowed in rows:
        names = re.findall(r"`([\w]+?)(?:\.py|/)?`", allowed)
        shown[room.strip().strip("`/").removesuffix(".py")] = names
        assert holds.strip(), room
        assert (PACKAGE / room.strip().strip("`")).exists(), room
    assert list(shown.items()) == list(read(FLOORS).items())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with a ground floor, a room above it, and an import of each kind."""
    package = tmp_path / "small"
    files = {
        "__init__.py": "",
        "ground.py": "import os\nNAME = 1\n",
        "below/__init__.py": "from small import ground\n",
        "below/deep.py": "from ..ground import NAME\nfrom . import other\n",
        "below/other.py": "",
        "above/__init__.py": "",
        "above/house.py": "import small.below.deep\n\n\ndef f():\n    from small.below import other\n    return other\n",
        "_stub/kernel.py": "import small.above\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


SMALL = {"__init__": [], "ground": [], "below": ["ground"], "above": ["below"]}


def test_arrows_are_found_wherever_they_stand(small: Path) -> None:
    found = {(arrow.file, arrow.line, arrow.source, arrow.target) for arrow in arrows(small)}
    assert found == {
        ("below/__init__.py", 1, "below", "ground"),
        ("below/deep.py", 1, "below", "ground"),
        ("above/house.py", 1, "above", "below"),
        ("above/house.py", 5, "above", "below"),
    }
    assert violations(small, SMALL) == []


@pytest.mark.parametrize(
    ("text", "arrow"),
    [
        ("def f():\n    from small.above.house import f", "ground.py:2: ground -> above (small.above.house)"),
        ("if TYPE_CHECKING:\n    from small import above", "ground.py:2: ground -> above (small.above)"),
        ("import small.below.deep as deep", "ground.py:1: ground -> below (small.below.deep)"),
        ("from .below import deep", "ground.py:1: ground -> below (small.below)"),
        ("from small import VERSION", "ground.py:1: ground -> __init__ (small.VERSION)"),
        ("import sglang.srt.utils", "ground.py:1: ground -> sglang (sglang.srt.utils)"),
        ("from eval.tasks import TASKS", "ground.py:1: ground -> eval (eval.tasks)"),
    ],
)
def test_what_the_table_does_not_have_is_named(small: Path, text: str, arrow: str) -> None:
    (small / "ground.py").write_text(text)
    assert violations(small, SMALL) == [f"redknot_sglang/{arrow}"]


def test_circles_are_found_with_their_way() -> None:
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"]}) == [["b", "c", "b"]]
    assert circles({"a": ["a"]}) == [["a", "a"]]
