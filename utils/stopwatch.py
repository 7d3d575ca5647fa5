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
        """Return pictures per second and the share of waiting; {} if no time has passed."""
        images, seconds, waited = (b - a for a, b in zip(earlier, self, strict=True))
        if not seconds:
            return {}
        return {"images_per_second": images / seconds, "data_wait": waited / seconds}


class Stopwatch:
    """Measures a loop over batches: `for batch in stopwatch.timed(batches)`.

    It stands still outside of the loop.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self.came: float | None = None  # when the batch came that is in use

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and note how long each of them took to come and to be used."""
        asked = time.perf_counter()
        for batch in batches:
            self.came = time.perf_counter()
            self.waited += self.came - asked
            self.seconds += self.came - asked
            yield batch
            asked = time.perf_counter()
            self.seconds += asked - self.came
            self.came = None

    def read(self) -> Reading:
        in_use = time.perf_counter() - self.came if self.came else 0.0
        return Reading(self.images, self.seconds + in_use, self.waited)
