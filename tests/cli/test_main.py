# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from redknot_sglang import __version__
from redknot_sglang.cli.main import build_parser, main


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("doctor", "heads", "profile", "certify", "report", "preload", "eval", "demo"):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        assert f"redknot {command}" in capsys.readouterr().out


def test_a_missing_subcommand_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"redknot-sglang {__version__}\n"


def test_what_cannot_be_done_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--url=http://127.0.0.1:1", "--tasks=nonsense"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("redknot eval: error: unknown task 'nonsense'") and err.count("\n") == 1


def test_the_parser_is_built_without_heavy_imports() -> None:
    code = (
        "import sys; from redknot_sglang.cli.main import build_parser; build_parser().format_help(); "
        "print(sorted({'torch', 'sglang', 'openai', 'tqdm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_flags_for_servers_are_refused_where_none_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["preload", "corpus.jsonl", "--", "--dtype=bfloat16"])
    assert done.value.code == 2
    assert "preload starts no server" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--conversations=0", "--turns=-1", "--length=0"])
def test_senseless_demo_sizes_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", option]) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_the_program_is_called_redknot() -> None:
    assert build_parser().prog == "redknot"
