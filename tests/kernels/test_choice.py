"""XTK_KERNELS: what runs where, what is said about it, and what happens where Triton is missing or broken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels.fused import BOX, DEVICE, MSE, boxes, some, tokens

from xtoolkit import kernels
from xtoolkit.kernels import choice
from xtoolkit.registry import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forget():
    """What was found out about Triton is remembered for the process: each test starts and leaves it unknown."""
    def clear():
        choice._use_triton.cache_clear()
        choice.problem.cache_clear()
    clear()
    yield
    clear()


@pytest.fixture
def calls(monkeypatch):
    """Which implementation each public call took."""
    took = []
    for name, module in (("box", BOX), ("mse", MSE)):
        for how in ("fused", "reference"):
            def record(*args, how=how, name=name, real=getattr(module, how)):
                took.append(f"{name} {how}")
                return real(*args)
            monkeypatch.setattr(module, how, record)
    return took


def call(dtype=torch.float32):
    kernels.box_loss(boxes(3, 0, dtype), boxes(3, 1, dtype))
    kernels.masked_mse(tokens((1, 3, 2), 0, dtype), tokens((1, 3, 2), 1, dtype), some((1, 3)))


@pytest.mark.parametrize("mode, dtype, how", [
    ("triton", torch.float32, "fused"), ("triton", torch.bfloat16, "fused"), ("triton", torch.float64, "reference"),
    ("torch", torch.float32, "reference"), ("auto", torch.float32, "fused" if DEVICE == "cuda" else "reference"),
    (None, torch.float32, "fused" if DEVICE == "cuda" else "reference"),
])
def test_what_runs(monkeypatch, calls, mode, dtype, how):
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    if mode:
        monkeypatch.setenv(choice.VARIABLE, mode)
    call(dtype)
    assert calls == [f"box {how}", f"mse {how}"]


def test_the_plan_counts_on_the_meta_device_whatever_is_asked_for(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert not choice.use_triton("meta")


def test_another_word_is_answered(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "tritn")
    with pytest.raises(ConfigError, match="XTK_KERNELS=tritn: no such choice; did you mean `triton`?"):
        call()


def test_what_is_said(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert choice.describe(DEVICE).startswith("triton 3.") and choice.describe(DEVICE).endswith(
        "(interpreted)" if choice.interpreted() else choice.triton.__version__)
    monkeypatch.setenv(choice.VARIABLE, "torch")
    assert choice.describe("cuda") == choice.describe("cpu") == "torch references (XTK_KERNELS=torch)"
    monkeypatch.setenv(choice.VARIABLE, "auto")
    assert choice.describe("cpu") == "torch references (no GPU)"


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_a_triton_that_does_not_work_is_said_or_fatal(monkeypatch, how):
    if how == "missing":
        monkeypatch.setattr(choice, "IMPORT_PROBLEM", "cannot be imported: No module named 'triton'")
        words = "Triton cannot be imported: No module named 'triton'"
    else:
        class Broken:
            def __getitem__(self, grid):
                raise RuntimeError("Failed to find C compiler\nmore")
        monkeypatch.setattr(choice, "_write_seven", Broken())
        monkeypatch.setattr(choice, "interpreted", lambda: True)
        monkeypatch.setattr(torch, "zeros", lambda *shape, device, zeros=torch.zeros: zeros(*shape))  # where there is no GPU
        words = "Triton does not run: RuntimeError: Failed to find C compiler"
    monkeypatch.setenv(choice.VARIABLE, "auto")
    assert not choice.use_triton("cuda")
    assert choice.describe("cuda") == f"torch references, since {words}"
    monkeypatch.setenv(choice.VARIABLE, "triton")
    with pytest.raises(ConfigError) as error:
        choice.use_triton("cuda")
    assert str(error.value) == f"XTK_KERNELS=triton, but {words}; mend that, or leave the choice to XTK_KERNELS=auto"


def test_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(choice, "interpreted", lambda: False)
    monkeypatch.setenv(choice.VARIABLE, "triton")
    with pytest.raises(ConfigError, match="runs on the CPU only through its interpreter: set TRITON_INTERPRET=1"):
        choice.use_triton("cpu")


def test_without_triton_the_references_run():
    """As on a machine where it is not installed: in a process of its own."""
    code = ("import sys; sys.modules['triton'] = None\n"
            "import torch; from xtoolkit import kernels; from xtoolkit.kernels import choice\n"
            "b = torch.rand(3, 4); print(*kernels.box_loss(b, b), choice.describe('cuda'), sep='|')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "torch references, since Triton cannot be imported" in done.stdout and done.stdout.startswith("tensor(0.)")


def test_the_train_tool_answers_in_one_line(tmp_path):
    code = (f"import os, sys, runpy; os.environ['XTK_KERNELS'] = 'trtion'; sys.argv = ['train_net.py', '--config', "
            f"{str(ROOT / 'projects/xfm/tiny.yaml')!r}, 'train.output={tmp_path / 'out'}']\n"
            f"runpy.run_path({str(ROOT / 'tools/train_net.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "XTK_KERNELS=trtion: no such choice; did you mean `triton`?" in done.stderr
    assert "Traceback" not in done.stderr
