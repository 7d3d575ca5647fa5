"""Checks of the data, the model and the training, before a training costs time.

A check is a function of a case. Its docstring is its row in the table: title, why it matters, what
to do. It returns what it saw (✓), or raises Wrong (✗), Doubt (!) or NotChecked (–).
tests/templates.py runs the same functions as tests.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from utils.signals import Stopped

Check = Callable[[Any], str]


class Verdict(Exception):
    """A check ends with another mark than ✓; the message is what it saw."""

    mark: str

    @classmethod
    def when(cls, condition: Any, seen: str) -> None:
        """Raise the verdict if the condition holds."""
        if condition:
            raise cls(seen)


class Wrong(Verdict, AssertionError):
    mark = "✗"  # the model would not learn, or its figures would be false


class Doubt(Verdict):
    mark = "!"  # it looks like a fault, but may be intended


class NotChecked(Verdict):
    mark = "–"  # the check does not apply here, or lacks what it needs


class Finding(NamedTuple):
    mark: str  # ✓, !, ✗ or –
    name: str
    seen: str
    why: str
    do: str


def run_check(check: Check, case: Any) -> Finding:
    """Return what a check finds. An error that the check does not expect is a finding, too."""
    name, why, do = re.split(r"\n *(?:Why|Do): ", check.__doc__ or "")
    try:
        mark, seen = "✓", check(case)
    except Verdict as verdict:
        mark, seen = verdict.mark, str(verdict)
    except Stopped:
        raise
    except Exception as error:  # the model and the data set may raise anything
        mark, seen = "✗", " ".join(f"it raises {type(error).__name__}: {error}".split())[:300]
    why, do = " ".join(why.split()), " ".join(do.split())
    return Finding(mark, name.strip(), seen, why=why, do=do)


def checks_in(names: dict[str, Any]) -> list[Check]:
    """Return the checks of a module in their order: the functions whose docstrings say why."""
    return [thing for thing in names.values() if "\nWhy:" in (inspect.getdoc(thing) or "")]


def some(names: Iterable[Any], limit: int = 4) -> str:
    """Return the first few names as text, and how many more there are."""
    names = [*map(str, names)]
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
