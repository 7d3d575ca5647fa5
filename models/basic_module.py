"""What every model can do besides `forward`: save, load, count its parameters."""

import time
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoint import CheckpointError, load_file, load_weights, plain_copy, write


class BasicModule(nn.Module):
    """A base for models: `class Mine(BasicModule)` with `__init__(self, num_classes, dropout)`."""

    pretrained_url = ""  # torchvision's ImageNet weights for this architecture

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: str | Path | None = None) -> Path:
        """Write the state dict; without a path to a new `checkpoints/<Class>_<time>.pth`."""
        if path is None:
            stem = f"{type(self).__name__}_{time.strftime('%m%d_%H_%M_%S')}"
            names = [stem, *(f"{stem}_{number}" for number in range(2, 1000))]
            paths = (Path("checkpoints") / f"{name}.pth" for name in names)
            path = next(path for path in paths if not path.exists())
        return write(path, plain_copy(self.state_dict()))

    def load(self, path: str | Path) -> "BasicModule":
        """Read the weights of a file; CheckpointError names the first that has no place here."""
        load_file(self, path)
        return self

    def pretrained_state(self) -> dict[str, Tensor]:
        """Return torchvision's ImageNet weights, which are downloaded once."""
        return torch.hub.load_state_dict_from_url(
            self.pretrained_url, map_location="cpu", check_hash=True, weights_only=True
        )

    def load_pretrained(self, head: Collection[str]) -> None:
        """Load torchvision's ImageNet weights, except those of the head, which stay new.

        Raises CheckpointError, with the file and the folder to put it, if the download fails.
        """
        if not self.pretrained_url:
            raise CheckpointError(
                f"there are no pretrained weights for {type(self).__name__}: "
                "it has no `pretrained_url`"
            )
        try:
            state = self.pretrained_state()
        except (OSError, RuntimeError) as error:  # no network, or another file than expected
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"cannot download {self.pretrained_url} ({error}); "
                f"put that file into {folder} and run again"
            ) from error
        body = {name: value for name, value in state.items() if name not in head}
        load_weights(self, body, source=self.pretrained_url, head=head)
