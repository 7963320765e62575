"""Memory of a run: what is freed is kept, so that the system does not clear the same pages over and over."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource

import numpy as np

from lit_metarl.processes import keep_freed_memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [np.ones(2**20) for _ in range(8)]  # 8 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True, text=True).stdout
    given_back, kept = map(int, output.split())
    assert kept < given_back / 5
