"""What people see of a run: in the terminal, in TensorBoard, on visdom and in report.html.

This is the one list of it. The x of all curves is the number of steps since the start of the run,
so that they can be laid over each other.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from utils import figures, files, gradcam, graph, metrics, report
from utils.visualize import Visualizer

if TYPE_CHECKING:
    from config import DefaultConfig

MOST_CLASSES = 12  # for which each class has a histogram of its own
EXAMPLES = 12  # pictures in a gallery
Answer = tuple[int, int, float]  # position in the val split, class that is given, probability


@dataclass
class Answers:
    """What the model says about the val split."""

    summary: Mapping[str, Any]  # of `metrics.summarize`
    confidence: Mapping[str, np.ndarray]  # the largest probability of each picture
    probability: Mapping[str, np.ndarray]  # of each class, for each picture
    mistakes: Sequence[report.Example]  # the surest ones
    least_sure: Sequence[report.Example]  # of the right ones
    to_explain: Sequence[Answer]


class Watch:
    """Shows a run: `start` once, then `batch`, `step` and `epoch` as it goes on, `end` at its end.

    resume_at: the x from which on a resumed run shows what has been shown before; else None.
    """

    def __init__(
        self,
        opt: "DefaultConfig",
        folder: Path,
        model: nn.Module,
        train_loader: Any,
        val_loader: Any,
        resume_at: int | None,
    ) -> None:
        self.opt, self.folder, self.model = opt, folder, model
        self.train_loader, self.val_loader = train_loader, val_loader
        self.classes = train_loader.dataset.classes
        self.vis = Visualizer(opt.env, folder, opt.visdom_port, resume_at)
        self.readings = {
            "step": train_loader.stopwatch.read(),
            "epoch": train_loader.stopwatch.read(),
        }

    def start(self) -> None:
        """Show the options, the data sets, and the graph of the model."""
        options = self.opt.result_options()
        self.vis.table("options", [("option", "value"), *options.items()])
        train, val = self.train_loader.dataset, self.val_loader.dataset
        counts = zip(self.classes, train.class_counts, val.class_counts, strict=True)
        self.vis.table("classes", [("class", "train", "val"), *counts])
        if sizes := picture_sizes(train):
            self.vis.histogram("picture sizes", sizes, x=0)
        with suppress(Exception):  # the operations of some models cannot be followed
            images = torch.zeros(2, 3, self.opt.image_size, self.opt.image_size)
            nodes = graph.nodes_of(self.model, images.to(device_of(self.model)))
            drawing = graph.to_svg(nodes)
            self.vis.svg("autograd graph", drawing)
            files.write_text(self.folder / "autograd.svg", drawing)
            self.vis.graph(graph.to_graph_def(nodes))

    def batch(self, split: str, images: Tensor, labels: Tensor, x: int) -> None:
        """Show the pictures of a batch (N, 3, H, W) as the model sees them."""
        dataset = self.train_loader.dataset
        pictures = figures.denormalize(images[:32], dataset.mean, dataset.std)
        names = [words_of(label, self.classes) for label in labels[:32].cpu().numpy()]
        self.vis.photo(f"first {split} batch", figures.gallery(pictures, names), x)

    def step(self, x: int, numbers: Mapping[str, float]) -> None:
        """Show the loss, the learning rate and the norm of the gradient, and the speed."""
        reading = self.train_loader.stopwatch.read()
        numbers = dict(numbers) | reading.since(self.readings["step"])
        self.readings["step"] = reading
        self.vis.plot_many({f"step/{name}": value for name, value in numbers.items()}, x)
        words = {"loss": f"{numbers['loss']:.3f}", "data wait": f"{numbers['data_wait']:.0%}"}
        self.train_loader.show_in_bar(words)

    def epoch_line(self, row: Mapping[str, float], max_epoch: int) -> str:
        """Return the line of an epoch for the log."""
        parts = [f"epoch {row['epoch']:.0f}/{max_epoch}, lr {row['lr']:.4g}"]
        for split in ("train", "val"):
            values = {k.partition("_")[2]: v for k, v in row.items() if k.startswith(f"{split}_")}
            if report.objective_is_loss(row):
                values.pop("objective", None)
            words = ", ".join(f"{name.replace('_', ' ')} {x:.4g}" for name, x in values.items())
            parts.append(f"{split}: {words}")
        reading = self.train_loader.stopwatch.read()
        if speed := reading.since(self.readings["epoch"]):
            rate, wait = speed["images_per_second"], speed["data_wait"]
            parts.append(f"{rate:,.0f} pictures/s, {wait:.0%} data wait")
        self.readings["epoch"] = reading
        return "; ".join(parts)

    def epoch(self, x: int, row: Mapping[str, float]) -> None:
        """Show the numbers of an epoch."""
        for key, value in row.items():
            split, _, name = key.partition("_")
            repeats_loss = name == "objective" and report.objective_is_loss(row)
            if split in ("train", "val") and not repeats_loss:
                self.vis.plot(name, value, x, line=split)
        if row["epoch"] == 1:
            self.vis.share_charts([name[4:] for name in row if name.startswith("val_")])

    def pictures(self, x: int, answers: Answers) -> None:
        """Show the answers on the val split: which are wrong, and how sure they are."""
        if counts := answers.summary["confusion"]:
            self.vis.photo("confusion", figures.confusion_picture(counts, self.classes), x)
        self.vis.histogram("confidence", answers.confidence, x, limits=(0, 1))
        if len(self.classes) <= MOST_CLASSES:
            self.vis.histogram("probability", answers.probability, x, limits=(0, 1))
        if answers.mistakes:
            self.vis.photo("mistakes", figures.gallery(*zip(*answers.mistakes, strict=True)), x)

    def layers(self, x: int) -> None:
        """Show the weights, and the gradients of the last step, layer by layer."""
        weights = dict(self.model.named_parameters())
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        self.vis.layers("weights", weights, x)
        self.vis.layers("gradients", gradients, x)

    def answers(self, logits: Tensor, labels: Tensor) -> Answers:
        """Return what is shown of the logits (M, K) and the labels (M,) of the val split."""
        shares = logits.sigmoid() if labels.ndim == 2 else logits.softmax(dim=1)
        worst = metrics.worst_mistakes(logits, labels, EXAMPLES)
        least_sure = metrics.least_sure_right(logits, labels, EXAMPLES)
        return Answers(
            summary=metrics.summarize(logits, labels),
            confidence=figures.confidences(*metrics.decisions(logits, labels)),
            probability=dict(zip(self.classes, shares.numpy().T, strict=True)),
            mistakes=self.examples(worst),
            least_sure=self.examples(least_sure),
            to_explain=[*worst[:4], *least_sure[:4]],
        )

    def examples(self, positions: Sequence[Answer]) -> list[report.Example]:
        """Return the val pictures of answers, and words on them."""
        dataset, readable = self.val_loader.dataset, self.val_loader.readable()
        found = []
        for position, given, probability in positions:
            with suppress(OSError):  # the file may have gone since the val pass
                image, label = dataset[readable[position]]
                pixels = np.asarray(image.permute(1, 2, 0))  # (H, W, 3)
                pixels = np.asarray(Image.fromarray(pixels.squeeze()).convert("RGB"))
                truth = words_of(np.asarray(label), self.classes)
                words = f"true: {truth}\ngiven: {self.classes[given]}\n{probability:.1%}"
                found.append((pixels, words))
        return found

    def page(
        self,
        state: str,
        history: Sequence[Mapping[str, float]],
        answers: Answers,
        seconds: float,
        with_looks: bool = False,
    ) -> str:
        """Return report.html. with_looks: with pictures of where the model looks."""
        train, val = self.train_loader.dataset, self.val_loader.dataset
        return report.render(
            report.Page(
                title=f"{self.opt.model} on {self.opt.train_data_root}",
                state=state,
                options=self.opt.result_options(),
                defaults=self.opt.defaults(),
                history=history,
                summary=answers.summary,
                classes=self.classes,
                class_counts={"train": train.class_counts, "val": val.class_counts},
                mistakes=answers.mistakes,
                least_sure=answers.least_sure,
                looks=self.looks(answers.to_explain) if with_looks else (),
                machine=self.machine(seconds),
            )
        )

    def looks(self, answers: Sequence[Answer]) -> list[report.Example]:
        """Return val pictures with what speaks for the class that the model gives them."""
        examples = self.examples(answers)
        if len(examples) < len(answers) or not answers:
            return []
        pixels = torch.from_numpy(np.stack([picture for picture, _ in examples]))
        images = self.val_loader.normalize(pixels.permute(0, 3, 1, 2).to(device_of(self.model)))
        with suppress(Exception):  # a model that gives several outputs
            maps = gradcam.grad_cam(self.model, images, [given for _, given, _ in answers])
            pairs = zip(examples, maps if maps is not None else (), strict=True)
            return [(gradcam.overlay(picture, heat), words) for (picture, words), heat in pairs]
        return []

    def machine(self, seconds: float) -> dict[str, str]:
        """Return what the run ran on, how long it took and how to repeat it."""
        try:
            text = (self.folder / "environment.json").read_text(encoding="utf-8")
            environment = json.loads(text)
        except (OSError, ValueError):
            environment = {}
        packages = environment.get("packages", {})
        versions = [
            f"{name} {packages[name]}" for name in ("torch", "torchvision") if name in packages
        ]
        return {
            "command": f"python main.py train {self.opt.as_words()}".strip(),
            "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s of training",
            "device": f"{device_of(self.model)}, {self.opt.precision}",
            "versions": ", ".join([f"Python {environment.get('python', '?')}", *versions]),
            "machine": f"{environment.get('platform', '?')}, {environment.get('cores', '?')} cores",
            "git commit": str(environment.get("git_commit")),
            "run": str(self.folder),
        }

    def end(self, x: int, summary: Mapping[str, Any]) -> None:
        """Show the options beside the final metrics, for the table that compares runs."""
        final = {f"final/{name}": summary[name] for name in metrics.METRICS}
        self.vis.hparams(self.opt.result_options(), final, x)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def words_of(label: np.ndarray, classes: Sequence[str]) -> str:
    """Return the names of the classes that a picture shows, with the shares of a mixed picture."""
    if label.ndim == 0:
        return classes[int(label)]
    shown = [f"{classes[k]} {label[k]:.0%}" for k in np.flatnonzero(label).tolist()]
    return " and ".join(shown).replace(" 100%", "") or "none of the classes"


def picture_sizes(dataset: Any, count: int = 200) -> dict[str, np.ndarray]:
    """Return the widths and heights of pictures that are evenly spread over a data set of files."""
    sizes = []
    for index in range(0, len(dataset), max(1, len(dataset) // count)):
        with suppress(Exception), Image.open(dataset.path(index)) as image:  # no path, or too large
            sizes.append(image.size)
    return dict(zip(("width", "height"), np.array(sizes).T, strict=True)) if sizes else {}
