"""Write the model for other programs (ONNX and others), compared with the original."""

import copy
import io
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from config import DefaultConfig
from utils.options import UsageError

PACKAGES = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "safetensors": ["safetensors"]}
SUFFIXES = {"onnx": ".onnx", "program": ".pt2", "safetensors": ".safetensors"}
LIMIT = 1e-4  # no probability may differ by more from that of the original
COMPARED = 200  # pictures

File = tuple[bytes, Callable]  # the contents, and what they compute: pictures to probabilities


class Options(DefaultConfig):
    """What is exported computes in float32, whatever --precision says."""

    format: Literal["onnx", "program", "safetensors"] = "onnx"  # program: torch.export's own file
    export_file: str | None = None  # the file to write; None: beside the checkpoint
    resize: bool = True  # false: takes pictures of image_size x image_size pixels only

    def validate(self) -> None:
        if self.export_file and Path(self.export_file).is_dir():
            raise UsageError(f"--export-file={self.export_file} is a folder: name a file in it")


class ExportError(RuntimeError):
    """A model that cannot be exported: one line that says why."""


def run(opt: Options) -> Path:
    """Write the file if it gives what the original gives; return its path."""
    wanted = PACKAGES.get(opt.format, [])
    if missing := [name for name in wanted if not find_spec(name)]:
        needs = f"--format={opt.format} needs {', '.join(missing)}"
        raise ExportError(f"{needs}: python -m pip install {' '.join(wanted)}")
    import torch

    import models
    from data.read_image import shrink
    from data.transforms import Normalize
    from utils import engine, files
    from utils.device import Precision
    from utils.exported import Exported
    from utils.trained import open_checkpoint, task_of

    # step 1: the model, with all that comes before and after it
    opt, saved, _, _ = open_checkpoint(opt)
    task = task_of(opt, saved)
    model = models.build(opt, len(task.classes)).eval()
    source, dataset, pictures = pictures_to_compare(opt)
    side = dataset.side if opt.resize else None
    exported = Exported(model, task, opt.mirror, opt.image_size, side).eval()
    exported.to(memory_format=torch.contiguous_format)  # as other programs expect weights

    # step 2: the contents of the file, and what they compute
    write = {"onnx": write_onnx, "program": write_program, "safetensors": write_weights}[opt.format]
    contents, classify = write(exported, facts_of(opt, task, side), opt)

    # step 3: the same pictures through val's transforms, normalisation and `evaluate`
    cpu = torch.device("cpu")
    normalize, float32 = Normalize(task.mean, task.std, cpu), Precision("fp32", cpu)
    differences = []
    for picture in pictures:
        image = dataset.transforms(shrink(picture, dataset.side))
        batch = 0, normalize(image[None]), torch.zeros(1)
        logits, _ = engine.evaluate(model, [batch], float32, opt.mirror)
        given = (picture if opt.resize else image).permute(1, 2, 0)[None]  # (1, H, W, 3)
        with torch.no_grad():
            difference = classify(given.contiguous()) - task.probabilities(logits)
        differences.append(difference.abs().max())
    difference = torch.stack(differences).max().item()
    what = f"on {len(pictures)} {source}, probabilities differ by {difference:.1e} at most"
    if not difference <= LIMIT:  # nor for NaN
        raise ExportError(f"the export is not like the original, so no file is written: {what}")
    path = Path(opt.export_file or Path(str(opt.load_model_path)).with_suffix(SUFFIXES[opt.format]))
    files.write_bytes(path, contents)
    print(f"compared with the original {what}")
    print(f"{path} ({len(contents) / 1e6:.1f} MB)")
    return path


def pictures_to_compare(opt: Options) -> tuple[str, Any, list[Any]]:
    """Return what the pictures are, a data set that prepares them, and the pictures (3, H, W).

    They are from the val split, evenly spread over it. If it cannot be opened, they are drawn.
    """
    import torch

    import data
    from data.transforms import resize

    with suppress(OSError, ValueError):
        dataset, pictures = data.open_split(opt, "val"), []
        if hasattr(dataset, "read"):
            for index in range(0, len(dataset), max(1, len(dataset) // COMPARED))[:COMPARED]:
                with suppress(OSError):  # a picture that cannot be read
                    pictures.append(dataset.read(index))
        if pictures:
            return "pictures of val", dataset, pictures
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(256, (32, 3, 6, 6), dtype=torch.uint8, generator=generator)
    sizes = torch.randint(40, 800, (32, 2), generator=generator).tolist()
    pictures = [resize(tile, *size) for tile, size in zip(tiles, sizes, strict=True)]
    return "drawn pictures", data.ImageDataset("val", opt.image_size), pictures


def facts_of(opt: Options, task: Any, side: int | None) -> dict[str, str]:
    """Return what a user of the file has to know, as texts; lists are JSON."""
    import torch

    from utils import files, run_folder

    facts = {
        "model": opt.model,
        "classes": task.classes,
        "kind": "sigmoid" if task.multi_label else "softmax",
        "image_size": opt.image_size,
        "decode_side": side,  # a JPEG may be decoded at 1/2, 1/4 or 1/8 that leaves so many pixels
        "mean": task.mean,
        "std": task.std,
        "mirror": opt.mirror,
        "temperature": task.temperature,
        "checkpoint_sha256": files.digest_of(str(opt.load_model_path)),
        "project": run_folder.environment()["git_commit"],
        "torch": str(torch.__version__),
    }
    known = {name: x for name, x in facts.items() if x is not None}
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in known.items()}


def graph_of(exported: Any, opt: Options) -> tuple[Any, dict]:
    """Return torch.export's graph, and the sizes that it leaves open: N, if it resizes H and W.

    Raises ExportError for a model whose code depends on the values or the number of the pictures.
    """
    import torch

    from utils.failures import one_line

    height, width = (200, 300) if opt.resize else (opt.image_size, opt.image_size)
    names = ("N", "H", "W") if opt.resize else ("N",)
    open_sizes = {"pictures": {axis: torch.export.Dim(name) for axis, name in enumerate(names)}}
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    logging.disable()  # torch would log and print the whole graph before it fails
    try:
        with redirect_stderr(io.StringIO()):
            return torch.export.export(exported, (example,), dynamic_shapes=open_sizes), open_sizes
    except Exception as error:
        raise ExportError(f"{opt.model} is no graph for any pictures: {one_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(exported: Any, facts: dict[str, str], opt: Options) -> File:
    import onnx
    import onnxruntime
    import torch

    graph, open_sizes = graph_of(exported, opt)
    program: Any = torch.onnx.export(
        graph,
        dynamo=True,
        input_names=["pictures"],
        output_names=["probabilities"],
        dynamic_shapes=open_sizes,  # for the names of the axes
        verbose=False,
    )
    proto = program.model_proto  # made anew each time that it is asked for
    onnx.helper.set_model_props(proto, facts)
    contents = proto.SerializeToString()
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])

    def classify(pictures: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])

    return contents, classify


def write_program(exported: Any, facts: dict[str, str], opt: Options) -> File:
    import torch

    file = io.BytesIO()
    extra_files = {"facts.json": json.dumps(facts)}
    torch.export.save(graph_of(exported, opt)[0], file, extra_files=extra_files)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def write_weights(exported: Any, facts: dict[str, str], opt: Options) -> File:
    from safetensors.torch import load, save

    import models
    from utils import checkpoint

    # Clones: the format does not know tensors that share memory.
    weights = {name: x.clone() for name, x in exported.model.state_dict().items()}
    contents = save(weights, metadata=facts)
    same = copy.deepcopy(exported)
    same.model = models.new(opt, len(exported.task.classes)).eval()
    checkpoint.load_weights(same.model, load(contents), source="the export")
    return contents, same
