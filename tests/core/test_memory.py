"""The peak of a stage's memory: its own and that of the processes it starts."""

import subprocess
import sys
import time

from soloist.toolchain.core.artifact import stage
from soloist.toolchain.core.memory import peak_memory

MB = 1_000_000


def test_what_was_taken_and_given_back_counts():
    with peak_memory(interval_s=0.05) as peak:
        before = peak.mb
        held = bytearray(300 * MB)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(0.3)
        del held
    assert 280 < peak.mb - before < 400


def test_a_child_counts_with_its_parent():
    script = f"held = bytearray({300 * MB}); held[::4096] = b'x' * len(held[::4096]); print(1, flush=True); input()"
    with peak_memory(interval_s=0.05) as peak:
        before = peak.mb
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.3)
        child.communicate(b"\n")
    assert 280 < peak.mb - before < 420


def test_the_manifest_of_a_stage_says_it(tmp_path):
    made = stage("record", tmp_path / "made", {}, [], lambda folder: {})
    assert 10 < made.manifest["peak_mb"] < 20_000
    assert made.manifest["seconds"] >= 0
