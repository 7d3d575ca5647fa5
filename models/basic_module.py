"""What every model can do besides `forward`: save, load, count its parameters."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoint import CheckpointError, read, write

# How the book's code names the parts of its models, and what they are called here.
BOOK_NAMES = [
    (r"^(module|model)\.", ""),
    (r"^pre\.0\.", "conv1."),
    (r"^pre\.1\.", "bn1."),
    (r"\.left\.0\.", ".conv1."),
    (r"\.left\.1\.", ".bn1."),
    (r"\.left\.3\.", ".conv2."),
    (r"\.left\.4\.", ".bn2."),
    (r"\.right\.", ".downsample."),
]


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
        return write(path, self.state_dict())

    def load(self, path: str | Path) -> "BasicModule":
        """Read a state dict or a checkpoint of `train`; CheckpointError says what does not fit."""
        contents = read(path)
        self.load_weights(contents.get("model", contents), source=path)
        return self

    def load_weights(self, state: Mapping[str, Tensor], source: str | Path = "state dict") -> None:
        """Copy `state` in, whole and of the right shapes, or change nothing and raise."""
        own = self.state_dict()
        # torchvision's and other old files do not count the batches of BatchNorm.
        counters = {n: torch.zeros_like(v) for n, v in own.items() if n.endswith("_tracked")}
        renamed = {n if n in own else book_name(n): value for n, value in state.items()}
        state = counters | renamed
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
        wrong = [
            f"{name} is {found.get(name, 'missing')} there, {shapes.get(name, 'unknown')} here"
            for name in shapes | found
            if shapes.get(name) != found.get(name) and not name.endswith("_extra_state")
        ]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise CheckpointError(
                f"{source} does not fit {type(self).__name__}: {wrong[0]}{more}; "
                "give the model and the classes it was saved with"
            )
        self.load_state_dict(state)

    def load_pretrained(self) -> None:
        """Start from torchvision's ImageNet weights; the head stays as initialised.

        Raises CheckpointError, which names the file and the folder, where it cannot be downloaded.
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
        except (OSError, RuntimeError) as error:  # no network, or not the file it should be
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"cannot download {self.pretrained_url} ({error}); "
                f"put that file into {folder} and run again"
            ) from error
        body = {
            name: value
            for name, value in state.items()
            if not name.startswith(f"{self.head_name}.")
        }
        own_head = {
            n: v for n, v in self.state_dict().items() if n.startswith(f"{self.head_name}.")
        }
        self.load_weights(body | own_head, source=self.pretrained_url)


def book_name(name: str) -> str:
    """Translate a parameter's name in the book's models (or in DataParallel) into ours."""
    for pattern, ours in BOOK_NAMES:
        name = re.sub(pattern, ours, name)
    return name
