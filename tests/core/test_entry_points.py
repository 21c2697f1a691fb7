"""Entry points: an attribute of a module, a module of a package, and one line for everything else."""

from __future__ import annotations

import sys

import pytest

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.entry_points import resolve_entry_point


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's whose module nobody has imported yet."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("value = 3\n")
    (folder / "rules.py").write_text("answer = 4\n")
    (folder / "broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_package"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_an_attribute_is_found_in_a_module_and_in_a_package(package):
    assert resolve_entry_point(f"{package}:value", "number", "none") == 3
    assert resolve_entry_point(f"{package}.rules:answer", "number", "none") == 4


def test_a_module_of_a_package_is_imported(package):
    assert f"{package}.rules" not in sys.modules
    assert resolve_entry_point(f"{package}:rules", "rules", "none").answer == 4


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("plain", "unknown rule 'plain': use one of exact, number, or module:function"),
        ("no_such_module_at_all:x", "rule 'no_such_module_at_all:x' cannot be imported: No module named"),
        ("my_package:absent", "No module named 'my_package.absent'"),
        ("my_package.rules:absent", "has no attribute 'absent'"),
        ("my_package:broken", "No module named 'no_such_module_at_all'"),
        (":x", "cannot be imported"),
        ("my_package:", "cannot be imported"),
        ("my_package.rules:", "cannot be imported"),
    ],
)
def test_what_is_missing_is_named(package, name, why):
    with pytest.raises(UsageError) as caught:
        resolve_entry_point(name, "rule", "exact, number")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
