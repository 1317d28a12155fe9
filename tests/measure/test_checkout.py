# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest

import redknot_sglang
from redknot_sglang.errors import CliError
from redknot_sglang.measure.checkout import find_checkout, import_package


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def package(folder: Path, text: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(text)
    return folder


def test_the_checkout_is_where_the_package_lies() -> None:
    assert (find_checkout() / "pyproject.toml").is_file()


def test_an_installed_package_has_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redknot_sglang, "__file__", str(tmp_path / "redknot_sglang" / "__init__.py"))
    with pytest.raises(CliError, match="clone the repository"):
        find_checkout()


def test_a_nested_package_keeps_its_full_name(tmp_path: Path) -> None:
    package(tmp_path / "outer_pkg", "VALUE = 7")
    inner = package(tmp_path / "outer_pkg" / "inner", "from .. import VALUE")
    module = import_package(inner)
    assert (module.__name__, module.VALUE) == ("outer_pkg.inner", 7)


def test_another_package_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="rename or uninstall the former"):
        import_package(package(tmp_path / "json"))


def test_a_package_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="No module named 'not_there_at_all'"):
        import_package(package(tmp_path / "broken_pkg", "import not_there_at_all"))


def test_a_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="no Python package"):
        import_package(tmp_path)
