"""How much memory a process uses: of its device; on a CPU what is resident, weights included."""

import resource
import sys
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(device: torch.device) -> int:
    """Most bytes in use since ``forget_peak``; where the system cannot forget (macOS, some containers), ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return _of_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def current(device: torch.device) -> int | None:
    """Bytes in use now; None where the system does not say (macOS)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _of_status("VmRSS") if _STATUS.exists() else None


def forget_peak(device: torch.device) -> None:
    """Lets ``peak`` begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _FORGET.exists():
        try:
            _FORGET.write_text("5")
        except OSError:
            return


def _of_status(name):
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
