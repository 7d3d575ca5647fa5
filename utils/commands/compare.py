"""Put several runs on one page: their curves over each other, and what differs between them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from config import DefaultConfig


class Options(DefaultConfig):
    """`compare RUN RUN …` takes the folders of runs, or files in them."""

    takes_words = "runs"

    runs: tuple[str, ...] = ()  # folders of runs; the word --runs may be left out
    page: str = "compare.html"  # the file to write


class Run(NamedTuple):
    """What a run's folder tells."""

    folder: Path
    options: dict[str, Any]
    environment: dict[str, str]
    history: list[dict[str, float]]
    best: dict[str, float]  # the row of the history that --best-metric chose


class RunError(ValueError):
    """A folder is not that of a run."""


def run(opt: Options) -> Path:
    """Write the page, and print the table of results; return the file."""
    from utils import chart, files, metrics, notebook, report
    from utils.options import UsageError

    if len(opt.runs) < 2:
        raise UsageError("compare needs two runs: python main.py compare RUN RUN …")
    if Path(opt.page).is_dir():
        raise UsageError(f"--page={opt.page} is a folder: name a file in it")
    runs = {f"run {number}": read_run(Path(path)) for number, path in enumerate(opt.runs, 1)}
    results = [["", *runs], ["folder", *(run.folder.name for run in runs.values())]]
    for name in dict.fromkeys(key for run in runs.values() for key in run.best):
        numbers = (run.best.get(name) for run in runs.values())
        words = ("" if number is None else f"{number:.4g}" for number in numbers)
        results.append([name.replace("_", " "), *words])
    differences = [["", *runs]]
    for part in ("options", "environment"):
        tables = [getattr(run, part) for run in runs.values()]
        for name in dict.fromkeys(key for table in tables for key in table):
            values = [str(table.get(name, "")) for table in tables]
            if len({*values}) > 1:
                differences.append([name, *values])
    page = report.template("compare.html", Path(__file__).parent).render(
        title=f"{len(runs)} runs",
        runs={name: run.folder for name, run in runs.items()},
        results=[row for row in results if row[0] != "folder"],  # `runs` has it
        differences=differences,
        curves={
            name: chart.line_chart(f"{name} by epoch", lines, "epoch")
            for name, lines in curves_of(runs).items()
        },
    )
    files.write_text(opt.page, page)
    print("\n".join(metrics.aligned(results, left=(0,))))
    print(f"the curves, and what differs, are in {opt.page}")
    notebook.show_page(Path(opt.page))
    return Path(opt.page)


def read_run(path: Path) -> Run:
    """Raises RunError if the folder has no readable run with at least one epoch."""
    from utils import metrics
    from utils.files import read_csv

    folder = path.parent if path.is_file() else path
    try:
        options = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        rows = read_csv(folder / "metrics.csv")
        history = [{name: float(x) for name, x in row.items() if x} for row in rows]
        if not history:
            raise ValueError("metrics.csv has no row")
        versions = environment.pop("packages")
        facts = {name: environment.get(name) for name in ("git_commit", "python", "platform")}
        facts |= {f"version of {name}": version for name, version in sorted(versions.items())}
        name = options.get("best_metric", "accuracy")
        counts = range(1, len(history) + 1)
        best = max((n for n in counts if metrics.is_best(name, history[:n])), default=len(history))
        return Run(folder, options, facts, history, history[best - 1])
    except (OSError, ValueError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError):
            reason = f"there is no {error.filename}"
        raise RunError(f"{folder} is not the folder of a run with an epoch ({reason})") from None


def curves_of(runs: dict[str, Run]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return {name of a chart: {run: points}} of what at least one run has measured."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number, run in runs.items():
        for row in run.history:
            for name, value in row.items():
                if name != "epoch":
                    lines = charts.setdefault(name.replace("_", " "), {})
                    lines.setdefault(number, []).append((row["epoch"], value))
    return dict(sorted(charts.items(), key=lambda item: not item[0].startswith("val")))
