"""Bring the ranks of one start together; older starts may have left their addresses behind."""

import time
import uuid

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def fresh_store(rank: int, world_size: int) -> dist.Store:
    """Return torchrun's store, under a name that these processes have and no earlier ones had.

    After a failure torchrun starts all ranks again, with the same store, and on several machines
    without a number that all of them know. So each rank writes down a name of its own, and the
    first one repeats the list of names until each rank has found itself in it.
    """
    store, *_ = next(rendezvous("env://"))
    own = uuid.uuid4().hex
    store.set(f"rank {rank}", own)
    while True:
        if rank == 0:
            names = [store.get(f"rank {other}").decode() for other in range(world_size)]
            store.set("ranks", ",".join(names))
        first, *others = store.get("ranks").decode().split(",")
        if own in (first, *others):
            store.set(f"{first} is known to {rank}", "")
            if rank or store.check([f"{own} is known to {other}" for other in range(world_size)]):
                return dist.PrefixStore(first, store)
        time.sleep(0.05)
