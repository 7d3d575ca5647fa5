"""Tools of the commands, a file for each thing.

main.py imports this package before torch, which reads the settings below when it is loaded.
"""

import os
import sys


def own_cores() -> set[int]:
    """Return the cores on which this thread may run; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


ALL_CORES = own_cores()

# OpenMP divides each operation of a step among threads that wait for each other. Beside another
# program that computes on the same cores, two of these threads may come to share one core, which
# makes a step up to fifty times slower. So each thread gets a core of its own (see utils/device.py
# for the main thread). What the user has set about OpenMP stays.
if sys.platform == "linux" and not any(name.startswith(("OMP_", "GOMP_")) for name in os.environ):
    os.environ.update(OMP_PROC_BIND="true", OMP_PLACES="cores")

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large memory pages for large tensors
