"""The loop this project grew from, in the plain form of its book: what speed is compared with.

python -m tests.benchmarks.book MODEL ROOT SIZE BATCH STEPS prints the time after each step.
"""

import sys
import time
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchnet import meter
from torchvision import models
from torchvision import transforms as T


class BookDogCat(Dataset):
    """Pictures named cat.0.jpg, dog.0.jpg …; each is resized, cropped, flipped and normalised."""

    def __init__(self, root: Path, size: int) -> None:
        self.paths = sorted(root.iterdir())
        self.transforms = T.Compose(
            [
                T.Resize(round(size * 256 / 224)),
                T.RandomResizedCrop(size),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        image = Image.open(path).convert("RGB")
        return self.transforms(image), int(path.name.startswith("dog"))


def make(name: str) -> nn.Module:
    """Make torchvision's model with two classes."""
    if name == "ResNet34":
        return models.resnet34(num_classes=2)
    return models.squeezenet1_1(num_classes=2)


def train(name: str, root: Path, size: int, batch: int, steps: int, lr: float = 1e-3) -> None:
    """Train for some steps of an epoch; print the time after each."""
    loader = DataLoader(BookDogCat(root, size), batch, shuffle=True, num_workers=2)
    model, criterion = make(name).train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    loss_meter, confusion = meter.AverageValueMeter(), meter.ConfusionMeter(2)
    for data, label in islice(loader, steps):
        optimizer.zero_grad()
        score = model(data)
        loss = criterion(score, label)
        loss.backward()
        optimizer.step()
        loss_meter.add(loss.item())
        confusion.add(score.detach(), label.detach())
        print(time.perf_counter())


if __name__ == "__main__":
    name, root, *numbers = sys.argv[1:]
    train(name, Path(root), *map(int, numbers))
