"""Go on with less memory: a batch that does not fit is computed in parts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils import distributed

if TYPE_CHECKING:
    from config import DefaultConfig


class TooLittleMemory(RuntimeError):
    """Not even two pictures at a time fit into the memory."""


class StepWithinMemory:
    """Calls train_step with --accumulate parts, and with twice as many where the memory is full.

    The step is then repeated from its start: same pictures, same dropout, and the statistics of
    BatchNorm as they were. The number of parts is kept in the options, which the run saves.
    """

    def __init__(
        self, train_step: Callable, opt: "DefaultConfig", log: Callable[[str], None]
    ) -> None:
        self.train_step, self.opt, self.log = train_step, opt, log

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Any:
        """Return what train_step returns. Raises TooLittleMemory."""
        buffers = [buffer.clone() for buffer in model.buffers()]
        gpu_states = torch.cuda.get_rng_state_all() if images.is_cuda else []
        random_state, updates = torch.get_rng_state(), options["amp"].updates
        while True:
            try:
                return self.train_step(
                    model, images, labels, accumulate=self.opt.accumulate, **options
                )
            except RuntimeError as error:
                has_begun = options["amp"].updates > updates
                is_of_all = self.opt.sync_bn and distributed.WORLD_SIZE > 1
                if not is_out_of_memory(error) or has_begun or is_of_all:
                    raise  # an update that has begun, or that all ranks make, cannot be repeated
                reason = str(error).splitlines()[0]
            # Outside of `except`: the error would keep the tensors of the step alive.
            self.opt.accumulate *= 2
            if self.opt.accumulate > len(images) // 2:
                raise TooLittleMemory(f"the memory is too small for two pictures ({reason})")
            options["optimizer"].zero_grad()
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            torch.set_rng_state(random_state)
            torch.cuda.set_rng_state_all(gpu_states)
            torch.accelerator.empty_cache()
            self.log(
                f"the memory is full: from here on, a batch is computed in {self.opt.accumulate} "
                "parts (--accumulate)"
            )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory was missing: of a GPU, or of the CPU under a limit (ulimit -v)."""
    words = "out of memory", "can't allocate memory", "not enough memory"
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
