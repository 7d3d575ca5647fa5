"""The book's training in Lightning and in fastai, each the way its own documentation shows.

python -m tests.benchmarks.peers lightning|fastai MODEL ROOT SIZE BATCH STEPS prints the time after
each step. Neither is needed for anything else: pip install lightning fastai.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.benchmarks.book import BookPictures, make


def lightning(name: str, root: Path, size: int, batch: int, steps: int) -> None:
    from lightning import LightningModule, Trainer

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = make(name), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return self.criterion(self.model(images), labels)

        def on_train_batch_end(self, *_: object) -> None:
            print(time.perf_counter())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-4)

    loader = DataLoader(
        BookPictures(root, size), batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps, enable_model_summary=False, **quiet)
    trainer.fit(Classifier(), loader)


def fastai(name: str, root: Path, size: int, batch: int, steps: int) -> None:
    from fastai.vision import all as vision

    class Times(vision.Callback):
        def after_batch(self) -> None:
            print(time.perf_counter())
            if self.iter + 1 == steps:
                raise vision.CancelFitException

    splits = [BookPictures(root, size, mode) for mode in ("train", "val")]
    dls = vision.ImageDataLoaders.from_lists(
        root,
        [path for split in splits for path in split.paths],
        [int(label) for split in splits for label in split.labels],
        item_tfms=vision.RandomResizedCrop(size),
        batch_tfms=[vision.Flip(), vision.Normalize.from_stats(*vision.imagenet_stats)],
        bs=batch,
        num_workers=2,
    )
    learner = vision.Learner(dls, make(name), loss_func=vision.CrossEntropyLossFlat())
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, 1e-3, cbs=Times())


if __name__ == "__main__":
    peer, name, root, *numbers = sys.argv[1:]
    {"lightning": lightning, "fastai": fastai}[peer](name, Path(root), *map(int, numbers))
