"""The scripts that are exported to a device: the double they are tested against, and what they may use."""

from __future__ import annotations

import ast
import inspect
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from soloist.targets.tensorrt import build_engine, run_engine

double = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tensorrt_engine_double.py"))))


def test_the_double_has_the_names_and_arguments_of_the_wheels():
    modules = double.library("10.3.0"), double.library("1.7.1.116", "tensorrt_rtx")
    for module, api in zip(modules, (double.API["api"], double.API["only_tensorrt_rtx"]), strict=True):
        for kind, members in api.items():
            for name, arguments in members.items():
                member = getattr(getattr(module, kind), name)
                if arguments is not None:
                    assert list(inspect.signature(member).parameters)[1:] == arguments, f"{kind}.{name}"
                else:
                    assert not inspect.isfunction(member) or name == "log"


def test_the_scripts_use_nothing_of_tensorrt_that_was_not_recorded():
    recorded = {"Logger", "name"}
    for api in (double.API["api"], double.API["only_tensorrt_rtx"]):
        recorded.update(api, *api.values())
    objects = {"trt", "builder", "network", "parser", "config", "profile", "runtime", "refitter", "engine", "error"}
    for module in (build_engine, run_engine):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in objects:
                ours = {"__name__", "__version__", *vars(run_engine.Engine), "facts", "length", "context"}
                assert node.attr in recorded | ours, f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("module", [build_engine, run_engine])
def test_a_script_stands_alone(module):
    tree = ast.parse(inspect.getsource(module), feature_version=(3, 10))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "numpy"}
