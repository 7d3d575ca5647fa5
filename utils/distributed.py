"""The ranks: the processes that torchrun starts for one training. Without it there is one."""

import atexit
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.notebook import OneLineError
from utils.rendezvous import fresh_store

torchrun = os.environ if dist.is_torchelastic_launched() else {}
RANK, WORLD_SIZE = int(torchrun.get("RANK", 0)), int(torchrun.get("WORLD_SIZE", 1))
LOCAL_RANK = int(torchrun.get("LOCAL_RANK", 0))  # among the ranks of this machine
LOCAL_WORLD_SIZE = int(torchrun.get("LOCAL_WORLD_SIZE", 1))
LAUNCH = torchrun.get("TORCHELASTIC_RUN_ID", "")  # the same after a restart
LAUNCH = f"none {os.getppid()}" if LAUNCH == "none" else LAUNCH  # with torchrun --master-port
SEED_KEY = (RANK,) if WORLD_SIZE > 1 else ()  # gives each rank a dropout of its own
untimed: Any = None  # the group in which the ranks wait for each other without a time limit


class OtherRankEnded(OneLineError, RuntimeError):
    """This rank cannot go on, because another one has ended."""


def start(use_gpu: bool) -> None:
    """Connect the ranks, if there are several; all but the first print nothing from now on."""
    global untimed
    if WORLD_SIZE > 1 and not untimed:
        if has_gpu := use_gpu and torch.cuda.is_available():
            torch.cuda.set_device(LOCAL_RANK)
        with other_ranks():
            store = fresh_store(RANK, WORLD_SIZE)
            backends = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
            dist.init_process_group(backends, store=store, rank=RANK, world_size=WORLD_SIZE)
            untimed = dist.new_group(backend="gloo", timeout=timedelta(days=1000))
            atexit.register(dist.destroy_process_group)
        if RANK:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def other_ranks() -> Iterator[None]:
    """Say plainly that another rank has ended; torch reports that a connection was closed."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("connect|closed|reset|peer", str(error), re.I):
            raise
        raise OtherRankEnded(f"rank {RANK} ends, because another rank has ended") from error


def from_all(value: Any) -> list:
    """Return the values that the ranks give; wait for all of them, however long it takes."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        with other_ranks():
            dist.all_gather_object(values, value, group=untimed)
    return values


def from_first(call: Callable, *args: Any) -> Any:
    """Let the first rank make a call; return on all ranks what it returns."""
    values = [call(*args) if RANK == 0 else None]
    if WORLD_SIZE > 1:
        with other_ranks():
            dist.broadcast_object_list(values, group=untimed)
    return values[0]


def integers_from_all(number: int) -> list[int]:
    """Return the integers that the ranks give; it is a faster `from_all`."""
    numbers = torch.zeros(WORLD_SIZE, dtype=torch.int64)
    numbers[RANK] = number
    return sum_of_all(numbers, untimed).tolist()


def sum_of_all(numbers: Tensor, group: Any = None) -> Tensor:
    """Add up the numbers of all ranks, in place; without a group, torch limits the waiting."""
    if WORLD_SIZE > 1:
        with other_ranks():
            dist.all_reduce(numbers, group=group)
    return numbers
