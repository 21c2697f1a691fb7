"""--strict-skips: a listed reason passes, another fails the run and is named; without the option both pass."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CONFTEST = f"""
import runpy
from types import SimpleNamespace

def pytest_addoption(parser, pluginmanager):
    pluginmanager.register(SimpleNamespace(**runpy.run_path({str(TESTS / "strict_skips.py")!r})), "strict-skips")
"""
LISTED = """
import pytest

def test_that_runs(): ...

def test_listed():
    pytest.skip("no GPU here")

@pytest.mark.skipif(True, reason="no file system may be mounted here (mount: denied)")
def test_listed_by_a_pattern(): ...

@pytest.mark.xfail
def test_expected_to_fail():
    assert False
"""
UNLISTED = """
import pytest

def test_in_a_test():
    pytest.skip("no Chromium")

@pytest.mark.skipif(True, reason="no compiler")
def test_in_a_mark(): ...

def test_that_only_begins_as_a_listed_one():
    pytest.skip("no GPU here, or no wish")
"""
MODULE = "import pytest\npytest.importorskip('not_a_package')\n"
TITLE = "skips that are not allowed"


@pytest.fixture
def run(tmp_path):
    """Run pytest on these files, with these options."""

    def run(files, *options):
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for i, text in enumerate(files):
            (tmp_path / f"test_{i}.py").write_text(text)
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def test_listed_reasons_and_expected_failures_pass(run):
    done = run([LISTED], "--strict-skips")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout
    assert TITLE not in done.stdout


def test_any_other_reason_fails_the_run_and_is_named_with_its_place(run):
    done = run([LISTED, UNLISTED, MODULE], "--strict-skips")
    assert done.returncode == 1, done.stdout + done.stderr
    named = re.findall(r"(test_\d)\.py:\d+: (.*)", done.stdout.partition(TITLE)[2])
    assert sorted(named) == [
        ("test_1", "no Chromium"),
        ("test_1", "no GPU here, or no wish"),
        ("test_1", "no compiler"),
        ("test_2", "could not import 'not_a_package': No module named 'not_a_package'"),
    ]


def test_without_the_option_any_skip_passes(run):
    done = run([LISTED, UNLISTED, MODULE])
    assert done.returncode == 0, done.stdout + done.stderr
    assert TITLE not in done.stdout


def test_every_listed_reason_is_one_that_a_test_gives():
    texts = [file.read_text() for file in TESTS.rglob("*.py") if file != Path(__file__)]
    given = set(re.findall(r"""(?:skip\(f?|reason=)["']([^"'{]+)""", "\n".join(texts)))
    for pattern in (TESTS / "allowed_skips.txt").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            start = pattern.partition(r"\(")[0]  # what follows a parenthesis is made when the test runs
            matches = [reason for reason in given if re.fullmatch(f"{start}|{pattern}", reason.rstrip("("))]
            assert matches, f"no test gives the reason '{pattern}'"
