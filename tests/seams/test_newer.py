# SPDX-License-Identifier: Apache-2.0
"""An SGLang that is not installed is read from its files: what it lacks of what we use, by name."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from textwrap import dedent

import pytest
import sglang

from redknot_sglang.cli.main import main
from redknot_sglang.errors import SeamError
from redknot_sglang.seams.newer import losses
from redknot_sglang.seams.signatures import has_field_in, parameters_in
from redknot_sglang.seams.source import Source
from redknot_sglang.seams.surface import Fields, Surface, fields, fits, parameters, surface
from redknot_sglang.versions import SUPPORTED_SGLANG, sglang_version

INSTALLED = Path(sglang.__file__).parent

# Modules below `sglang.srt` of an SGLang that was never released.
FILES = {
    "server_args": """
        import msgspec
        from sglang.srt.cars.parts import Bolt as Screw
        from .cars import *

        class ServerArgs:
            def resolve(self): ...

        ServerArgs.colour = "red"
        ServerArgs = msgspec.defstruct("ServerArgs", list(ServerArgs.__annotations__))
    """,
    "cars.__init__": """
        from .parts import Wheel
        from . import engine
    """,
    "cars.engine": "class Engine: ...",
    "cars.parts": """
        from dataclasses import KW_ONLY, dataclass, field
        from typing import ClassVar, NamedTuple
        import msgspec

        try:
            import steel
        except ImportError:
            steel = None
        else:
            def forge(bar, *bars, heat=1, tool, **kwargs): ...

        class Base:
            __slots__ = ("weight",)
            def turn(self, by, /, fast=False, *, back=False):
                self.angle = by
            @classmethod
            def made(cls, of): ...
            @staticmethod
            def free(of=None): ...

        class Wheel(Base):
            spokes: int
            def __init__(self, size, spokes=12):
                self.size = size
            @property
            def rim(self): ...

        @dataclass
        class Bolt:
            length: int
            kind: ClassVar[str] = "m8"
            pitch: float = 1.0
            nut: object = field(default=None)
            hidden: int = field(init=False)
            _: KW_ONLY
            colour: str

        @dataclass(kw_only=True)
        class Nut(Bolt):
            length: int = 3

        class Order(msgspec.Struct):
            rid: str | None = None

        class Sent(Order, kw_only=True):
            body: dict
            to: str = ""

        class Result(NamedTuple):
            first: int
            second: int = 2

        wheel = Wheel(1)
        wheels: list = [wheel]
    """,
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for module, text in FILES.items():
        path = tmp_path.joinpath("python/sglang/srt", *module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return Source(tmp_path)


@pytest.mark.parametrize(
    ("module", "name", "there"),
    [
        ("cars.parts", "Wheel", True),
        ("cars.parts", "steel", True),
        ("cars.parts", "wheels", True),
        ("cars.parts", "Wheel.turn", True),
        ("cars.parts", "Wheel.spokes", True),
        ("cars.parts", "Wheel.sail", False),
        ("cars.parts", "wheel.rim", True),
        ("cars.parts", "wheels.rim", False),
        ("cars.parts", "Sail", False),
        ("cars", "Wheel", True),
        ("server_args", "Screw.pitch", True),
        ("server_args", "Bolt", False),
        ("server_args", "Wheel", True),
        ("server_args", "ServerArgs.resolve", True),
        ("boats", "Sail", False),
    ],
)
def test_names_are_found_through_imports_and_bases(source: Source, module: str, name: str, there: bool) -> None:
    assert (source.define(module, name) is not None) is there


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("forge", "(bar, *bars, heat=, tool, **kwargs)"),
        ("Base.turn", "(self, by, fast=, *, back=)"),
        ("Wheel.turn", "(self, by, fast=, *, back=)"),
        ("Base.made", "(of)"),
        ("Base.free", "(of=)"),
        ("Wheel", "(size, spokes=)"),
        ("Wheel.__init__", "(self, size, spokes=)"),
        ("Bolt", "(length, pitch=, nut=, *, colour)"),
        ("Nut.__init__", "(self, pitch=, nut=, *, length=, colour)"),
        ("Sent", "(rid=, body, to=)"),
        ("Result", "(first, second=)"),
        ("Result._replace", "(self, **kwds)"),
        ("Wheel._replace", None),
        ("wheels", None),
    ],
)
def test_parameters_are_written_as_in_the_tables(source: Source, name: str, takes: str | None) -> None:
    found = parameters_in(source, "cars.parts", name)
    assert (None if found is None else f"({', '.join(found)})") == takes


@pytest.mark.parametrize(
    ("module", "name", "field", "there"),
    [
        ("cars.parts", "Wheel", "size", True),
        ("cars.parts", "Wheel", "angle", True),
        ("cars.parts", "Wheel", "weight", True),
        ("cars.parts", "Wheel", "rim", True),
        ("cars.parts", "Wheel", "colour", False),
        # Given when the class is made anew, which its file does not say.
        ("server_args", "ServerArgs", "model_path", None),
    ],
)
def test_fields_are_those_declared_or_set(
    source: Source, module: str, name: str, field: str, there: bool | None
) -> None:
    whole = source.define(module, name)
    assert whole is not None and has_field_in(source, whole, field) is there


def test_what_is_lost_is_said_by_name(source: Source) -> None:
    surface: Surface = {
        "cars.parts": {
            "Wheel": "(size, spokes=)",
            "Wheel.turn": "(self, by)",
            "Engine": None,
            "Engine.start": "(self)",
        },
        "boats": {"Sail": None},
        "server_args": {"ServerArgs.__init__": "(self, model_path)", "ServerArgs.resolve": "(self)"},
    }
    fields: Fields = {
        "cars.parts": {"Wheel": "size sails", "Engine": "power"},
        "boats": {"Rudder": "size"},
        "server_args": {"ServerArgs": "resolve device"},
    }
    assert [str(loss) for loss in losses(source, surface, fields)] == [
        "changed cars.parts.Wheel.turn: takes (self, by, fast=, *, back=), not (self, by)",
        "gone    cars.parts.Engine: Engine is in cars.engine",
        "gone    cars.parts.Engine.start: Engine is in cars.engine",
        "gone    boats.Sail",
        "unread  server_args.ServerArgs.__init__: its parameters are not in its files",
        "gone    cars.parts.Wheel.sails: a field",
        "gone    boats.Rudder",
        "unread  server_args.ServerArgs.device: a field",
    ]


def test_of_the_installed_one_nothing_is_lost_and_files_say_what_imports_say() -> None:
    source = Source(INSTALLED)
    assert source.version == sglang_version()
    found = [str(loss) for loss in losses(source, surface(), fields()) if loss.kind != "unread"]
    assert found == []
    for module, names in surface().items():
        for name, expected in names.items():
            read = parameters_in(source, module, name)
            if expected is not None and read is not None:
                assert fits(read, expected) == fits(
                    parameters(pkgutil.resolve_name(f"sglang.srt.{module}:{name}")), expected
                )


def test_the_command_holds_an_sglang_against_what_is_used(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = source.root.parent.parent.parent
    assert main(["doctor", f"--sglang={checkout}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"SGLang of a checkout in {source.root.parent}, and what RedKnot uses of SGLang {SUPPORTED_SGLANG[-1]}:"
    )
    assert "  gone    managers.schedule_policy.PrefillAdder.add_one_req" in lines
    unread = sum(line.startswith("  unread  ") for line in lines)
    assert unread and lines[-1].split(", ")[1:] == ["0 changed", f"{unread} unread"]
    assert main(["doctor", f"--sglang={INSTALLED}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 gone, 0 changed, ")


@pytest.mark.parametrize("package", ["_version.py", "../sglang-9.8.7.dist-info/METADATA"])
def test_the_version_is_what_the_files_say(source: Source, package: str) -> None:
    assert source.version is None
    path = source.root.parent / package
    path.parent.mkdir(exist_ok=True)
    path.write_text("__version__ = version = '9.8.7'\n")
    assert Source(source.root.parent).version == "9.8.7"


def test_a_folder_without_sglang_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SeamError, match=f"there is no SGLang in {tmp_path}; name a virtual environment"):
        Source(tmp_path)
    assert main(["doctor", f"--sglang={tmp_path}"]) == 2
    assert "redknot doctor: error: there is no SGLang in" in capsys.readouterr().err


def test_it_is_not_about_a_server(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"--sglang={source.root}", "--model=somewhere"]) == 2
    assert "leave either out" in capsys.readouterr().err
