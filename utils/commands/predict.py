"""Tell the class of any pictures, and how probable it is, a line each."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from typing import Any

from config import DefaultConfig
from utils.options import PositiveInt, UsageError

Row = dict[str, Any]  # what is known of a picture, see Predictions
ESCAPED = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})  # a name may have these in it


class Options(DefaultConfig):
    """`predict PATH …` takes pictures, folders and patterns; `-` reads paths from stdin."""

    takes_words = "paths"

    paths: tuple[str, ...] = ()  # pictures, folders, 'patterns/*.jpg', - for paths on stdin
    top: PositiveInt | None = None  # classes to print for each picture; None: the answer
    json: bool = False  # print a JSON object for each picture
    csv: str | None = None  # a table to write: the answers and the probability of each class

    def validate(self) -> None:
        if not self.paths:
            raise UsageError("predict needs a picture or a folder: python main.py predict PATH …")
        if self.csv and os.path.isdir(self.csv):
            raise UsageError(f"--csv={self.csv} is a folder: name a file in it")


class Predictions(list[Row]):
    """A dict for each picture, in the order given.

    Keys are path, class, probability and probabilities (a dict), or path and error for a picture
    that is left out. With multi-label data, class and probability are lists: of the classes that
    are more probable than 0.5.
    """

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 1 if a picture is left out."""
        return int(any("error" in row for row in self))


def run(opt: Options) -> Predictions:
    """Print the class of each picture as soon as it is known; return what is known of all."""
    import data
    import models
    from utils import engine, files
    from utils.given_pictures import GivenPictures, expand
    from utils.output import nobody_reads
    from utils.trained import open_checkpoint, task_of

    with redirect_stdout(sys.stderr):  # stdout has the answers and nothing else
        opt, saved, device, amp = open_checkpoint(opt)
    task = task_of(opt, saved)
    model = models.build(opt, len(task.classes)).to(device)
    dataset = GivenPictures(expand(opt.paths), opt.image_size, task)
    # A single batch is read as fast without loader processes, which take time to start.
    workers = opt.num_workers if len(dataset) > opt.batch_size else 0
    loader = data.Loader(dataset, opt.batch_size, workers, device)

    def classify(batch: tuple) -> dict[int, list[float]]:
        logits, indices = engine.evaluate(model, [batch], amp, opt.mirror)
        return dict(zip(indices.tolist(), task.probabilities(logits).tolist(), strict=True))

    predictions = Predictions()
    with loader:
        for known in answers(loader, classify):
            for index, probabilities in known.items():
                path = dataset.given_path(index)
                if probabilities:
                    row = {"path": path, **answer(probabilities, task)}
                else:
                    row = {"path": path, "error": dataset.failure(index)}
                predictions.append(row)
                show(row, opt)
            sys.stdout.flush()
            if nobody_reads() and not opt.csv:
                break
    if opt.csv:
        files.write_csv(opt.csv, [table_row(row) for row in predictions])
    return predictions


def answers(loader: Any, classify: Callable) -> Iterator[dict[int, list[float] | None]]:
    """Yield {index: probabilities} batch by batch, in order; None for what cannot be read."""
    from data import UnreadableImage

    start = 0
    with suppress(UnreadableImage):  # at the end, if not one picture can be read
        for batch in loader.epoch(title="predict"):
            known = classify(batch)
            end = max(known) + 1
            yield {index: known.get(index) for index in range(start, end)}
            start = end
    yield dict.fromkeys(range(start, len(loader.dataset)))


def answer(probabilities: list[float], task: Any) -> Row:
    """Return the class, or the classes of multi-label data, with all probabilities."""
    by_class = dict(zip(task.classes, probabilities, strict=True))
    if task.multi_label:
        shown = {name: x for name, x in by_class.items() if x > 0.5}
        return {"class": [*shown], "probability": [*shown.values()], "probabilities": by_class}
    best = max(by_class, key=by_class.__getitem__)
    return {"class": best, "probability": by_class[best], "probabilities": by_class}


def show(row: Row, opt: Options) -> None:
    """Print a row; the line has tabs between path, class and probability."""
    from tqdm import tqdm  # its `write` leaves the progress bar whole

    from data.read_image import printable

    path = printable(row["path"]).translate(ESCAPED)
    if "error" in row:
        tqdm.write(f"{path} is left out: {row['error']}", file=sys.stderr)
    if opt.json:
        tqdm.write(json.dumps(row))
    elif "error" not in row:
        ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])
        count = opt.top or (len(row["class"]) if isinstance(row["class"], list) else 1)
        cells = [cell for name, x in ranked[:count] for cell in (name, f"{x:.4f}")]
        tqdm.write("\t".join([path, *cells]))


def table_row(row: Row) -> Row:
    """Return a row of the table; that of a picture which is left out has a path only."""
    from data.read_image import printable

    path = printable(row["path"])
    if path.startswith(("=", "+", "-", "@")):
        path = f"./{path}"  # the same file, and no formula for a spreadsheet
    if "error" in row:
        return {"path": path}
    cells: Row = {"path": path, "class": row["class"], "probability": row["probability"]}
    if isinstance(row["class"], list):
        cells |= {name: ", ".join(map(str, cells[name])) for name in ("class", "probability")}
    by_class = row["probabilities"].items()
    return cells | {f"class {name}" if name in cells else name: x for name, x in by_class}
