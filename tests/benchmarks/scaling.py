"""What several GPUs would be worth, on paper: python -m tests.benchmarks.scaling

A step takes T = compute + sum + meetings, and the efficiency is compute / T. After the backward
pass each rank adds its G bytes of gradients to those of the others in a ring (Patarasuk and Yuan,
2009): in 2 (N - 1) rounds it sends G / N bytes to the next rank, 2 (N - 1) / N * G in all. A round
ends with its slowest link. Nothing overlaps. None of these numbers is measured.
"""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import models

# An H100 SXM machine by its data sheets. REACHED is the share of it that programs reach.
FLOPS = 989e12  # a second, in bfloat16
MEMORY = 3.35e12  # bytes a second
NVLINK = 450e9  # bytes a second in each direction, to the GPUs of the same machine
NETWORK = 50e9  # bytes a second of each GPU's own 400 Gb/s card, to the other machines
RINGS = 8  # that share the gradients, one for each card
REACHED = 0.8
LATENCY = {"nvlink": 2e-6, "network": 10e-6}  # seconds of a round
MEETING = {"nvlink": 100e-6, "network": 200e-6}  # seconds until all CPUs know an integer
MEETINGS = 2  # in a step: the numbers of pictures, and whether to stop
COMPUTES = {"SqueezeNet": 0.10, "ResNet34": 0.35}  # the share of FLOPS that a model reaches


class Case(NamedTuple):
    model: str
    batch: int  # pictures a GPU
    gpus: int

    def compute(self) -> float:
        """Return the seconds of the forward and the backward pass at 224 pixels."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            getattr(models, self.model)(num_classes=2)(torch.empty(1, 3, 224, 224))
        forward = counter.get_total_flops()
        return 3 * forward * self.batch / (FLOPS * COMPUTES[self.model])

    def gradient_bytes(self) -> int:
        with torch.device("meta"):
            return 4 * getattr(models, self.model)(num_classes=2).num_parameters

    def links(self) -> list[str]:
        """Return the kind of the link from each GPU to the next one in the ring."""
        return [
            "nvlink" if (gpu + 1) % 8 or self.gpus <= 8 else "network" for gpu in range(self.gpus)
        ]

    def sum(self) -> float:
        """Return the seconds of the sum over the ranks, round by round."""
        speeds = {"nvlink": NVLINK / RINGS, "network": NETWORK}  # of one of the rings
        part = self.gradient_bytes() / self.gpus / RINGS
        seconds = 4 * self.gradient_bytes() / (REACHED * MEMORY)  # into one tensor, and back
        for _ in range(2 * (self.gpus - 1)):
            seconds += max(LATENCY[x] + part / (REACHED * speeds[x]) for x in self.links())
        return seconds

    def meetings(self) -> float:
        return MEETINGS * max(MEETING[link] for link in self.links())

    def efficiency(self) -> float:
        return self.compute() / (self.compute() + self.sum() + self.meetings())


if __name__ == "__main__":
    print("| model | pictures a GPU | GPUs | compute | sent by each GPU | sum | efficiency |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in [Case(m, b, g) for m in COMPUTES for b in (32, 256) for g in (8, 32)]:
        sent = 2 * (case.gpus - 1) / case.gpus * case.gradient_bytes() / 1e6
        numbers = f"{1e3 * case.compute():.2f} ms | {sent:.1f} MB | {1e3 * case.sum():.2f} ms"
        name = f"{case.model} | {case.batch} | {case.gpus}"
        print(f"| {name} | {numbers} | {case.efficiency():.0%} |")
