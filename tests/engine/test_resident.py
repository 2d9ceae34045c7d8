"""What the log says of memory, and that a long run's does not grow with the shapes of its batches."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit.engine import memory

CPU = torch.device("cpu")
BLOCK = 64 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is resident now")
def test_what_is_in_use_now_comes_and_goes_and_the_peak_stays():
    before = memory.current(CPU)
    held = torch.ones(BLOCK // 4)
    with_it = memory.current(CPU)
    del held
    after, peak = memory.current(CPU), memory.peak(CPU)
    assert with_it - before > 0.9 * BLOCK and with_it - after > 0.9 * BLOCK
    assert peak > 0.99 * with_it  # the kernel counts a little late
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.02)


def test_a_command_bounds_the_shapes_that_are_kept_and_the_user_has_the_last_word():
    code = ("import os; from xtoolkit.cli.main import main; main(['list', 'hooks'])\n"
            "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])")
    plain = {k: v for k, v in os.environ.items() if k not in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")}
    for given, expected in (({}, "64 256"), ({"LRU_CACHE_CAPACITY": "7"}, "7 256")):
        said = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True)
        assert said.stdout.splitlines()[-1] == expected, said.stderr


def test_a_peak_is_forgotten_and_seen():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not forget a peak")
    memory.forget_peak(CPU)
    before = memory.peak(CPU)
    block = torch.ones(BLOCK // 4)
    assert memory.peak(CPU) - before > 0.9 * BLOCK
    del block
    memory.forget_peak(CPU)
    assert memory.peak(CPU) - before < 0.5 * BLOCK
