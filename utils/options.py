"""What makes a class of annotated defaults a command line: types, checks, help. No torch here.

fire alone lets any option into `**kwargs` and calls the function before it looks at left-over
arguments, so wrong usage is found here first, before anything is loaded or written.
"""

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

PROJECT = Path(__file__).resolve().parent.parent


class UsageError(ValueError):
    """A wrong command, option or value: one line that says what to type instead."""

    exit_code = 2


class Range(NamedTuple):
    """What values fit, in words and as bounds."""

    words: str
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False

    def holds(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high


PositiveFloat = Annotated[float, Range("a number above 0", low=0, open_low=True)]
PositiveInt = Annotated[int, Range("a whole number from 1 up", low=1)]
WholeNumber = Annotated[int, Range("a whole number from 0 up", low=0)]
Fraction = Annotated[float, Range("a number from 0 to 1", low=0, high=1)]

NotNegative = Annotated[float, Range("a number from 0 up", low=0)]
ImageSize = Annotated[int, Range("a whole number from 64 to 1024", low=64, high=1024)]
InputPath = Annotated[str, "the path of something there is"]

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def describe(hint: Any) -> str:
    """Say in words what values `hint` takes."""
    if isinstance(hint, UnionType) or get_origin(hint) not in (None, Annotated, Literal):
        return " or ".join(
            "None" if part is NoneType else describe(part) for part in get_args(hint)
        )
    if get_origin(hint) is Literal:
        return " | ".join(get_args(hint))
    if get_origin(hint) is Annotated:
        return getattr(get_args(hint)[1], "words", get_args(hint)[1])
    return TYPE_WORDS[hint]


def coerce(hint: Any, value: Any) -> Any:
    """Read `value`, typed or as text, as a person means it; ValueError if it does not fit."""
    text = str(value).strip()
    if isinstance(hint, UnionType) or get_origin(hint) not in (None, Annotated, Literal):
        parts = sorted(get_args(hint), key=lambda part: part is not NoneType)  # "None" is no text
        for part in parts:  # in their order: `bool | str` takes "true" for True
            with suppress(ValueError):
                return coerce(part, value)
        raise ValueError
    if hint is NoneType:
        if value is None or text.lower() in ("none", "null"):
            return None
        raise ValueError
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError
        return text
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        value = coerce(kind, value)
        if isinstance(bounds, Range) and not bounds.holds(value):
            raise ValueError
        return value
    if hint is str:
        if not text or isinstance(value, bool) or value is None:
            raise ValueError
        return text
    if hint is bool:
        if text.lower() not in TRUE | FALSE:
            raise ValueError
        return text.lower() in TRUE
    if isinstance(value, bool):
        raise ValueError
    number = float(text)
    if not isfinite(number) or (hint is int and number != int(number)):
        raise ValueError
    return int(text) if hint is int and text.lstrip("+-").isdigit() else hint(number)


def nearest(word: str, valid: Sequence[str]) -> str:
    """Suggest the valid word that looks most like `word`, or name them all."""
    close = difflib.get_close_matches(word.lower(), [v.lower() for v in valid], n=1, cutoff=0.5)
    found = [v for v in valid if v.lower() in close]
    return f"did you mean {found[0]}?" if found else f"choose from: {', '.join(valid)}"


def flag(name: str) -> str:
    """Write an option as one types it: lr_decay is --lr-decay."""
    return f"--{name.replace('_', '-')}"


def imported_names(package: str) -> list[str]:
    """List what `<package>/__init__.py` imports from its files, without running it."""
    tree = ast.parse((PROJECT / package / "__init__.py").read_text(encoding="utf-8"))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [alias.asname or alias.name for node in froms for alias in node.names]


class Options:
    """A base for classes of annotated defaults; the comment behind a field is its help."""

    def __init__(self, **given: Any) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in hints:
            setattr(self, name, getattr(type(self), name))
        for key, value in given.items():
            name = key.replace("-", "_")
            if name not in hints:
                raise UsageError(
                    f"there is no option {flag(name)}; {nearest(flag(name), [*map(flag, hints)])}"
                )
            try:
                setattr(self, name, coerce(hints[name], value))
            except (ValueError, OverflowError):
                wanted = describe(hints[name])
                raise UsageError(f"{flag(name)} takes {wanted}, not {str(value)!r}") from None
        for name, package in (("model", "models"), ("dataset", "data")):
            known = [word for word in imported_names(package) if word[0].isupper()]
            if (word := getattr(self, name)) not in known:
                raise UsageError(f"--{name}={word} is not in {package}/; {nearest(word, known)}")

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)

    def shaping(self) -> dict[str, Any]:
        """Return the options that shape the result of a run."""
        return {name: v for name, v in vars(self).items() if name not in self.free_on_resume}

    def resumed(self, saved: Mapping[str, Any], given: Mapping[str, Any]) -> "Options":
        """Return the `saved` options of a run with those of `given` that leave its result alone.

        UsageError names the others that differ, unless `allow_changes` asks for them. max_epoch
        may grow.
        """
        changed = [
            f"{flag(name)}={getattr(self, name)} (it has {saved.get(name)})"
            for name in given
            for value in [getattr(self, name)]
            if name not in self.free_on_resume and value != saved.get(name)
            if not (name == "max_epoch" and value > saved[name])
        ]
        if changed and not self.allow_changes:
            raise UsageError(
                f"the run to resume would become another with {', '.join(changed)}; "
                "leave that out, or add --allow-changes"
            )
        return type(self)(**{**saved, **given})

    @classmethod
    def table(cls, commands: Mapping[str, tuple[str, Any]]) -> str:
        """Lay out the commands and every option: name, default, meaning, what it takes."""
        lines = ["python main.py COMMAND --option=value …", "", "Commands"]
        lines += [f"  {name:<9}{words}" for name, (words, _) in commands.items()]
        hints = get_type_hints(cls, include_extras=True)
        for line in inspect.getsource(cls).splitlines():
            if section := re.fullmatch(r" {4}# (.+)", line):
                lines += ["", section[1]]
            if field := re.match(r" {4}(\w+): .*?  # (.+)", line):
                name, meaning = field.groups()
                default = f"{flag(name)}={getattr(cls, name)}"
                lines.append(f"  {default:<36} {meaning} [{describe(hints[name])}]")
        return "\n".join(lines)


def split_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Read `COMMAND --name=value --name value --flag` into the command and its options."""
    command, options, waiting = "", {}, None
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in options:
                raise UsageError(f"--{name} is given twice")
            options[name] = value if equals else True
            waiting = None if equals else name
        elif waiting:
            options[waiting], waiting = word, None
        elif command or word.startswith("-"):
            raise UsageError(f"cannot read {word!r}; options are written --name=value")
        else:
            command = word
    return command, options


def check_usage(
    config: type[Options], commands: Mapping[str, tuple[str, str | None]], arguments: list[str]
) -> list[str]:
    """Return `arguments` in the one form `COMMAND --name=value …`, or end the program.

    Exit code 2 and one line for wrong usage, 0 for help. Takes no more than the standard library.
    """
    try:
        if not arguments or arguments[0] == "help" or {"-h", "--help"} & set(arguments):
            print(config.table(commands))
            sys.exit(0)
        command, given = split_arguments(arguments)
        if command not in commands:
            raise UsageError(f"there is no command {command!r}; {nearest(command, list(commands))}")
        opt = config(**given)
        hints = get_type_hints(config, include_extras=True)
        inputs = [name for name in given if InputPath in (hints[name], *get_args(hints[name]))]
        required = None if opt.resume else commands[command][1]
        for name in filter(None, [required, *inputs]):
            path = getattr(opt, name)
            if isinstance(path, str) and not os.path.exists(path):  # also False for an odd name
                raise UsageError(f"{path} does not exist; give the right path: {flag(name)}=PATH")
        return [command, *(f"--{name}={getattr(opt, name)}" for name in given)]
    except UsageError as error:
        print(f"{error}\n(python main.py help shows every option)", file=sys.stderr)
        sys.exit(2)
