"""What every model can do besides `forward`: save, load, count its parameters."""

import time
from pathlib import Path

import torch
from torch import nn

from utils.checkpoint import CheckpointError, load_file, load_weights, plain_copy, write


class BasicModule(nn.Module):
    """A base for models: `class Mine(BasicModule)` with `__init__(self, num_classes, dropout)`."""

    pretrained_url = ""  # torchvision's ImageNet weights for this architecture
    head_name = ""  # the classifier, which `load_pretrained` leaves as it is

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

    def load_pretrained(self) -> None:
        """Load torchvision's ImageNet weights; the head keeps its new weights.

        Raises CheckpointError, with the file and the folder to put it, if the download fails.
        """
        if not (self.pretrained_url and self.head_name):
            raise CheckpointError(
                f"there are no pretrained weights for {type(self).__name__}: "
                "it has no `pretrained_url` and `head_name`"
            )
        try:
            state = torch.hub.load_state_dict_from_url(
                self.pretrained_url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # no network, or another file than expected
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"cannot download {self.pretrained_url} ({error}); "
                f"put that file into {folder} and run again"
            ) from error
        head = f"{self.head_name}."
        state = {name: value for name, value in state.items() if not name.startswith(head)}
        state |= {n: value for n, value in self.state_dict().items() if n.startswith(head)}
        load_weights(self, state, source=self.pretrained_url)
