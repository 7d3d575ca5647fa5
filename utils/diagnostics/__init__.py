"""Will it learn? Checks of the data, the model and the training, each with what was seen.

A check is a function of a case whose docstring is its row in the table: its name, why it matters,
and what to do. It returns what it saw, or raises Wrong (✗) or Doubt (!). tests/templates.py runs
the same functions as tests.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from utils.signals import Stopped

Check = Callable[[Any], str]


class Wrong(AssertionError):
    """✗: the model would not learn, or its numbers would not be true."""


class Doubt(UserWarning):
    """!: it may be meant so."""


class Finding(NamedTuple):
    mark: str  # ✓, ! or ✗
    name: str
    seen: str
    why: str
    do: str

    def __str__(self) -> str:
        line = f"{self.mark} {self.name}: {self.seen}"
        return line if self.mark == "✓" else f"{line}\n    why: {self.why}\n    do:  {self.do}"


class Table:
    """What the checks found, shown as it comes, or for machines as JSON at the end."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json, self.started = as_json, time.monotonic()
        self.findings: list[Finding] = []
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")  # a pipe on Windows has no ✓ otherwise

    def fill(self, checks: Iterable[Check], case: Any) -> None:
        for finding in run(checks, case):
            self.findings.append(finding)
            if not self.as_json:
                print(finding, flush=True)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: Any) -> None:
        """Sum up, also when the rest cannot be checked."""
        counts = Counter(finding.mark for finding in self.findings)
        marks = ", ".join(f"{counts[mark]} {mark}" for mark in "✓!✗")
        rows = [finding._asdict() for finding in self.findings]
        line = f"{marks} in {time.monotonic() - self.started:.0f} s"
        print(json.dumps(rows, ensure_ascii=False) if self.as_json else line)

    @property
    def wrong(self) -> bool:
        return any(finding.mark == "✗" for finding in self.findings)


def run(checks: Iterable[Check], case: Any) -> Iterator[Finding]:
    """Run one check after another; one that breaks down has found something as well."""
    for check in checks:
        name, why, do = re.split(r"\n+ *(?:Why|Do): ", check.__doc__)
        words = [" ".join(part.split()) for part in (why, do)]
        try:
            mark, seen = "✓", check(case)
        except Doubt as doubt:
            mark, seen = "!", str(doubt)
        except Wrong as wrong:
            mark, seen = "✗", str(wrong)
        except Stopped:
            raise
        except Exception as error:  # of a stranger's model or data set
            mark, seen = "✗", " ".join(f"it raises {type(error).__name__}: {error}".split())[:300]
        yield Finding(mark, name.strip(), seen, *words)


def some(names: Iterable[Any], most: int = 4) -> str:
    """Name the first few."""
    names = [*map(str, names)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def bad_gradients(model: nn.Module) -> list[str]:
    """Name the parameters whose gradient is not finite."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [name for name, grad in grads.items() if not grad.isfinite().all()]
