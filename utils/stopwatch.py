"""How fast a loop gets its batches, and how long it waits for them."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Reading(NamedTuple):
    """What a stopwatch shows: all of it counts up."""

    images: int
    seconds: float
    waited: float  # seconds until a batch had come

    def since(self, earlier: "Reading") -> dict[str, float]:
        """Return pictures per second, and the share of the time that was spent waiting."""
        images, seconds, waited = (b - a for a, b in zip(earlier, self, strict=True))
        return {"images_per_second": images / seconds, "data_wait": waited / seconds}


class Stopwatch:
    """Measures a loop over batches: `for batch in stopwatch.timed(batches)`."""

    def __init__(self) -> None:
        self.images, self.waited = 0, 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and note how long each of them took to come."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def read(self) -> Reading:
        return Reading(self.images, time.perf_counter(), self.waited)
