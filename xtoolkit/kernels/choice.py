"""Which kernels run: Triton's or the torch references, by ``XTK_KERNELS`` and by what this machine can do."""

import functools
import os
import subprocess

import torch

from xtoolkit.registry import ConfigError, nearest

# What a Triton that is missing, built for something else, or without a compiler or a driver raises.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, subprocess.SubprocessError)

try:
    import triton
    import triton.language as tl
except BROKEN as problem:
    triton = tl = None
    IMPORT_PROBLEM = f"cannot be imported: {problem}"
else:
    IMPORT_PROBLEM = None
    BROKEN += (triton.errors.TritonError,)

VARIABLE = "XTK_KERNELS"
MODES = ("auto", "triton", "torch")


def jit(function):
    """``triton.jit``; without Triton the function as it is, never to be launched."""
    return function if triton is None else triton.jit(function)


# A graph that torch.compile made keeps the choice of the call that made it: what is found out about Triton is not traced.
@torch.compiler.assume_constant_result
def use_triton(device_type: str) -> bool:
    """Whether the kernels, not the references, compute tensors of this type of device.

    ``XTK_KERNELS``: ``auto`` (the default) takes Triton on a GPU, the references elsewhere and where Triton does not work;
    ``triton`` takes Triton (tensors of a CPU through its interpreter, which ``TRITON_INTERPRET=1`` must have switched on
    before anything imports Triton); ``torch`` takes the references.

    Raises:
        ConfigError: another word, or ``triton`` where Triton does not work, with what keeps it from working.
    """
    return _use_triton(os.environ.get(VARIABLE, "auto"), device_type)


def describe(device_type: str) -> str:
    """One line that says which kernels run on this type of device and why: for the console and the run's record.

    Raises:
        ConfigError: as ``use_triton``.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if use_triton(device_type):
        return f"triton {triton.__version__}" + (" (interpreted)" if interpreted() else "")
    if mode == "torch":
        return f"torch references ({VARIABLE}=torch)"
    if device_type == "cpu":
        return "torch references (no GPU)"
    return f"torch references, since Triton {problem(device_type)}"


@functools.cache
def _use_triton(mode, device_type):
    if mode not in MODES:
        raise ConfigError(f"{VARIABLE}={mode}: no such choice{nearest(mode, MODES)}")
    # On the meta device, where the plan counts, there is nothing to compute.
    if mode == "torch" or device_type == "meta" or mode == "auto" and device_type != "cuda":
        return False
    reason = problem(device_type)
    if reason and mode == "triton":
        raise ConfigError(f"{VARIABLE}=triton, but Triton {reason}; mend that, or leave the choice to {VARIABLE}=auto")
    return reason is None


@functools.cache
def problem(device_type: str) -> str | None:
    """What keeps Triton from working on this type of device, found by running a kernel once; None: nothing."""
    if IMPORT_PROBLEM:
        return IMPORT_PROBLEM
    if device_type == "cpu" and not interpreted():
        return "runs on the CPU only through its interpreter: set TRITON_INTERPRET=1"
    if device_type not in ("cpu", "cuda"):
        return f"is not supported here on `{device_type}`"
    try:
        seven = torch.zeros(1, device=device_type)
        _write_seven[(1,)](seven)
        wrote = seven.item() == 7
    except BROKEN as error:
        return f"does not run: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None if wrote else "runs, but a kernel that writes 7 did not write 7"


def interpreted() -> bool:
    """Whether Triton's kernels run through its interpreter."""
    return triton is not None and not isinstance(_write_seven, triton.runtime.JITFunction)


@jit
def _write_seven(pointer):
    tl.store(pointer, 7.0)
