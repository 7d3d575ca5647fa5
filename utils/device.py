"""Where the model computes, in which numbers, and the settings that make a CPU fast."""

import ctypes
import os
from contextlib import suppress
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from utils import ALL_CORES, own_cores

Name = Literal["auto", "fp32", "bf16", "fp16"]  # of a precision, as in config.py


def use_cores(cores: set[int]) -> None:
    """Let this thread run on these cores only; what it starts later runs there as well."""
    with suppress(OSError):  # a container may have fewer cores by now
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)


# OpenMP has bound the main thread to its first core when torch was imported. `Run` binds it again
# while it trains on the CPU; at other times, what the main thread starts may use every core.
OWN_CORE = own_cores()
use_cores(ALL_CORES)


def set_up_device(
    use_gpu: bool, precision: Name, deterministic: bool
) -> tuple[torch.device, "Precision"]:
    """Return the device and the precision that the options ask for; prepare torch for both.

    The device is the accelerator (CUDA, Apple, Intel) if there is one and use_gpu allows it, else
    the CPU. deterministic: the same bits each time on a GPU as well; a CPU gives them anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # loads torch's compiler: 1.5 s
    tune_cpu()
    found = use_gpu and torch.accelerator.current_accelerator(check_available=True)
    device = found or torch.device("cpu")
    return device, Precision(precision, device)


def tune_cpu() -> None:
    """Avoid two things that can each cost a CPU half its speed.

    Denormal numbers (below 1e-38) are frequent once a batch is learnt and take a processor a
    hundred times as long as others: they are rounded to 0. And malloc returns large blocks to the
    system after each step, which zeroes them page by page for the next: mallopt(3) stops that.
    """
    torch.set_flush_denormal(True)
    with suppress(OSError, AttributeError):  # only glibc has mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mapping for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes to keep for the next step


class Precision:
    """The numbers in which the model computes: float32, bfloat16 or float16.

    "auto" is bfloat16 if the device computes it natively, else float32. `autocast` wraps the
    forward pass. `scaler` keeps small gradients of float16 from becoming 0; for the other two it
    does nothing.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if has_native_bf16(device) else "fp32"
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.name = name
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        self.updates = 0  # of the weights, since the start of this process

    def step(self, optimizer: Optimizer) -> None:
        """Update the weights by `optimizer.step()`, unless float16 gradients overflowed."""
        self.updates += 1  # first: an update that fails half-way has changed weights as well
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def has_native_bf16(device: torch.device) -> bool:
    """Ask the processor or the GPU. Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(found.get("amx_bf16") or found.get("avx512_bf16"))
