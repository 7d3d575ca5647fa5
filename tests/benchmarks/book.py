"""The loop this project grew from, in the plain form of its book: what ours is compared with.

python -m tests.benchmarks.book MODEL ROOT SIZE BATCH STEPS [val] prints the time after each step
and, if asked, the accuracy on the pictures that this project takes for val.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchnet import meter
from torchvision import models
from torchvision import transforms as T

from config import DefaultConfig
from data import open_split

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BookPictures(Dataset):
    """The files of our data set; each picture is resized, cropped, flipped and normalised."""

    def __init__(self, root: Path, size: int, mode: Literal["train", "val"] = "train") -> None:
        split = open_split(DefaultConfig(train_data_root=root), mode)
        self.paths = [split.path(index) for index in range(len(split))]
        self.labels = split.labels
        augment = [
            T.Resize(round(size * 256 / 224)),
            T.RandomResizedCrop(size),
            T.RandomHorizontalFlip(),
        ]
        self.transforms = T.Compose(
            [
                *(augment if mode == "train" else [T.Resize(size), T.CenterCrop(size)]),
                T.ToTensor(),
                T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transforms(image), int(self.labels[index])


def make(name: str) -> nn.Module:
    """Make torchvision's model with two classes."""
    if name == "ResNet34":
        return models.resnet34(num_classes=2)
    return models.squeezenet1_1(num_classes=2)


def train(name: str, root: Path, size: int, batch: int, steps: int, lr: float = 1e-3) -> nn.Module:
    """Train for some steps; print the time after each."""
    loader = DataLoader(BookPictures(root, size), batch, shuffle=True, num_workers=2)
    model, criterion = make(name).to(DEVICE).train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    loss_meter, confusion = meter.AverageValueMeter(), meter.ConfusionMeter(2)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for data, label in itertools.islice(epochs, steps):
        data, label = data.to(DEVICE), label.to(DEVICE)
        optimizer.zero_grad()
        score = model(data)
        loss = criterion(score, label)
        loss.backward()
        optimizer.step()
        loss_meter.add(loss.item())
        confusion.add(score.detach(), label.detach())
        print(time.perf_counter())
    return model


@torch.no_grad()
def accuracy(model: nn.Module, root: Path, size: int, batch: int) -> float:
    """Share of the val pictures that the model gets right."""
    model.eval()
    confusion = meter.ConfusionMeter(2)
    for data, label in DataLoader(BookPictures(root, size, "val"), batch, num_workers=2):
        confusion.add(model(data.to(DEVICE)), label)
    return confusion.value().trace() / confusion.value().sum()


if __name__ == "__main__":
    name, root, *case = sys.argv[1:]
    size, batch, steps = map(int, case[:3])
    model = train(name, Path(root), size, batch, steps)
    if case[3:] == ["val"]:
        print(f"accuracy {accuracy(model, Path(root), size, batch):.4f}")
