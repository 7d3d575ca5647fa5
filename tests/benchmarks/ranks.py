"""Run by torchrun: print how many pictures a second several ranks train on, in the second epoch.

python -m torch.distributed.run --nproc-per-node=2 -m tests.benchmarks.ranks DATA MODEL SIZE …
"""

import sys
from argparse import Namespace

from tests.benchmarks.__main__ import Bench
from utils import distributed

if __name__ == "__main__":
    data, model, size, batch, steps = sys.argv[1:]
    case = {"size": int(size), "batch": int(batch), "steps": int(steps)}
    rate = Bench(Namespace(data=data, model=model, **case)).train_from_memory()
    if distributed.RANK == 0:
        print(rate)
