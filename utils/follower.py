"""What `train` has in place of a Run on all ranks of torchrun but the first."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from utils import ALL_CORES, distributed
from utils.device import Precision, use_cores
from utils.run import Batch, History, Run
from utils.synchronize import copy_from_first


class Follower(Run):
    """Goes through the same epochs and steps as the first rank's Run; writes and shows nothing."""

    def log(self, line: str) -> None:
        pass

    def start(
        self, train_loader: Any, val_loader: Any, amp: Precision, **tracked: Any
    ) -> tuple[int, History]:
        self.amp, self.model, self.began = amp, tracked["model"], 0.0
        self.metadata = {"device": next(self.model.parameters()).device.type}
        self.folder = distributed.from_first(lambda: None)
        self.tracked = {**tracked, "amp": amp}
        self._restore()
        copy_from_first(self.model)
        epoch, step = self.saved.get("epoch", 0), self.saved.get("step", 0)
        history = self.saved.get("history", [])
        self._note_position(epoch=epoch, step=step, history=history)
        return step, history

    def watch(self, split: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._end_if_asked()

    def step_done(self, epoch: int, step: int, history: History, **numbers: Any) -> None:
        pass

    def epoch_done(self, epochs: int, history: History, logits: Tensor, labels: Tensor) -> None:
        self._note_position(epoch=epochs, step=0, history=history)
        self._end_if_asked()

    def load_best(self) -> None:
        copy_from_first(self.model)

    def write_report(self, history: History, logits: Tensor, labels: Tensor) -> None:
        self._end_if_asked()

    def __exit__(self, error_type: Any, error: BaseException | None, trace: Any) -> None:
        self._wait_for_all(error)
        use_cores(ALL_CORES)
        self.stop.__exit__(error_type, error, trace)
