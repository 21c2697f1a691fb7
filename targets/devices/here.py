"""Which of the listed devices this machine is, by the names it has: of its board, its GPUs, its processor.

For defaults such as the assumed price of an hour. A machine that matches none is the virtual machine where a hypervisor
runs it, and else the x86 machine that is not listed. Left out: several GPUs (the first that matches counts), and
processors that do not say their name (ARM under Windows and most of Linux).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

from soloist.kernels import gpu
from soloist.targets.devices.spec import Device, device, devices

VIRTUAL, UNKNOWN = "vm-x86-2core", "x86-unknown"


def this_machine(root: Path = Path("/")) -> Device:
    """The device this machine is taken for. `root` is where /proc lies."""
    board, processor, virtual = _linux(root)
    for name in (board, *gpu.names(), processor or _other_processor()):
        for one in devices().values():
            if one.matches and re.search(one.matches, name, re.IGNORECASE):
                return one
    return _of_cores(device(VIRTUAL)) if virtual else device(UNKNOWN)


def _linux(root: Path) -> tuple[str, str, bool]:
    """Board and processor, empty where Linux does not tell, and whether a hypervisor is below."""
    board, processor, virtual = "", "", False
    with contextlib.suppress(OSError):
        board = (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace").rstrip("\0")
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                processor = value.strip()
            elif key.strip() == "flags":
                virtual = "hypervisor" in value.split()
    return board, processor, virtual


def _other_processor() -> str:
    if platform.system() != "Darwin":
        return platform.processor()
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    return ""


def _of_cores(rented: Device) -> Device:
    """Rent and power for the cores there are."""
    cores = os.cpu_count() or 1
    if rented.cores in (None, cores):
        return rented
    share = cores / (rented.cores or 1)
    assumed = {name: f"{reason}; here for {cores} cores" for name, reason in rented.assumed.items()}
    return replace(
        rented, usd_per_hour=rented.usd_per_hour * share, watts=rented.watts * share, cores=cores, assumed=assumed
    )
