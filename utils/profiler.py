"""Where the time of a training step goes: --profile."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP, ACTIVE = 3, 6  # steps that are left out, for the first ones are slow, and steps recorded


def profiled(batches: Iterable, folder: Path, log: Callable[[str], None]) -> Iterator:
    """Yield the batches; write what happens in some of the steps to trace.json.

    https://ui.perfetto.dev shows that file. The log gets the operations that took the most time.
    """

    path = folder / "trace.json"

    def write(profiler: Any) -> None:
        try:
            profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            log(f"{path} cannot be written: {error}")
            return
        on_gpu = torch.accelerator.is_available()
        column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=column, row_limit=10)
        log(f"{table}\n{path} shows {ACTIVE} steps: open it in https://ui.perfetto.dev")

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=WARM_UP - 1, warmup=1, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        for batch in batches:
            yield batch
            profiler.step()
    if not path.exists():
        log(f"{path} is not written: an epoch has too few steps, {WARM_UP + 1} are needed")
