"""Where the model computes, in which numbers, and what makes a CPU fast at it."""

import ctypes
import os
from contextlib import suppress

import torch


def pick_device(use_gpu: bool, deterministic: bool = False) -> torch.device:
    """The accelerator (CUDA, Apple, Intel) if there is one and it is wanted, else the CPU.

    deterministic: the same bits each time on a GPU as well; a CPU gives them anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    tune_cpu()
    found = use_gpu and torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def tune_cpu() -> None:
    """Spare a CPU two things that can each cost half its speed.

    Memory of a step goes back to the system and comes again, page by page and zeroed, at the next
    one, unless the allocator is told to keep it (mallopt(3); without glibc nothing is done).
    Numbers below 1e-38, of which there are many once a batch is learnt, take the processor a
    hundred times as long as others; they are taken for 0.
    """
    torch.set_flush_denormal(True)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages for large tensors
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes kept free for the next step


class Precision:
    """In which numbers the model computes: one path for all of them.

    "auto" is bfloat16 where the device computes it natively, else float32. `autocast` wraps the
    forward pass; `scaler` keeps the small gradients of float16 and lets all others through.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if has_native_bf16(device) else "fp32"
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.name = name
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")


def has_native_bf16(device: torch.device) -> bool:
    """Ask the processor or the GPU; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(can.get("amx_bf16") or can.get("avx512_bf16"))
