"""Turn a class of annotated defaults into a command line: types, validation, help. No torch here.

fire alone accepts any option for `**kwargs`, and reports a superfluous argument only after the
command has run. So wrong usage is found here first, before anything is loaded or written.
"""

import ast
import difflib
import inspect
import json
import math
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from utils.commands import names as optional_commands
from utils.notebook import OneLineError

PROJECT = Path(__file__).resolve().parent.parent
NOT_SAVED = ("resume", "allow_changes", "config", "dry_run")  # they hold for one command only
PACKAGES = {"model": "models", "dataset": "data"}  # where a class with the option's name is found
given_classes: dict[tuple[str, str], type] = {}  # (package, name): a class given as an option

# `ours: theirs`: what other projects call our options.
SYNONYMS = """
    lr: learning_rate rate; max_epoch: epochs num_epochs n_epochs; batch_size: bs
    accumulate: grad_accum gradient_accumulation_steps; clip_norm: grad_clip max_grad_norm
    weight_decay: wd l2; model: arch architecture net network backbone; resume: resume_from restart
    train_data_root: data data_dir data_root data_path root train_dir; test_data_root: test_dir
    num_workers: workers n_workers jobs threads; use_gpu: device gpu gpus cuda cpu
    image_size: size img_size imgsz input_size resolution; precision: amp fp16 bf16 half mixed
    load_model_path: checkpoint ckpt weights pretrained_path; best_metric: metric monitor
    checkpoint_root: output_dir out_dir save_dir log_dir logdir; result_file: output csv submission
    print_freq: log_interval log_every; seed: random_state manual_seed; mirror: tta
    cache: on_device; val_share: val_split valid_size validation_split test_size; fold: kfold
    augment: augmentation augmentations aug; oversample: sampler weighted_sampler
"""


class UsageError(OneLineError, ValueError):
    """A wrong command, option or value. The message is one line that says what to type instead."""

    exit_code = 2


class Limits(NamedTuple):
    """The values that an option takes, in words and as bounds."""

    words: str
    low: float = -math.inf
    high: float = math.inf

    def contain(self, value: Any) -> bool:
        return isinstance(value, str) or self.low <= value <= self.high


class FoldLimits(Limits):
    """Takes texts like 2/5, the second of five."""

    def contain(self, value: str) -> bool:
        number, slash, count = value.partition("/")
        return bool(slash) and 1 <= int(number) <= int(count) > 1


class ListLimits(Limits):
    """Takes names with commas between them."""

    def contain(self, value: str) -> bool:
        return {*value.split(",")} <= {*AUGMENTATIONS}


# Not the smallest number of all: a processor that rounds tiny numbers to 0 would take it for 0.
PositiveFloat = Annotated[float, Limits("a number above 0", low=sys.float_info.min)]
PositiveInt = Annotated[int, Limits("a whole number from 1 up", low=1)]
WholeNumber = Annotated[int, Limits("a whole number from 0 up", low=0)]
Fraction = Annotated[float, Limits("a number from 0 to 1", low=0, high=1)]
NotNegative = Annotated[float, Limits("a number from 0 up", low=0)]
ImageSize = Annotated[int, Limits("a whole number from 64 to 1024", low=64, high=1024)]
InputPath = Annotated[str, Limits("an existing path")]
Fold = Annotated[str, FoldLimits("a fold and how many there are, like 2/5")]

AUGMENTATIONS = ("trivialaugment", "randaugment", "augmix", "erasing", "mixup", "cutmix")
Augmentations = Annotated[str, ListLimits(f"some of {', '.join(AUGMENTATIONS)}")]

WORD_END = "\0"  # between the words of a command line; only this is in no file's name
UNIONS = (Union, UnionType)
TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def describe(hint: Any) -> str:
    """Return in words the values that an option of the type `hint` takes."""
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        return "any number of texts"
    if get_origin(hint) in UNIONS:
        return " or ".join("None" if part is NoneType else describe(part) for part in parts)
    if get_origin(hint) is Literal:
        return " | ".join(parts)
    return parts[1].words if parts else TYPE_WORDS[hint]


def coerce(hint: Any, value: Any) -> Any:
    """Return `value`, which may be text, as the type `hint`; ValueError if that is impossible."""
    text = str(value).strip()
    if get_origin(hint) in UNIONS:
        # In their order, so that `bool | str` reads "true" as True; but "None" is never text.
        for part in sorted(get_args(hint), key=lambda part: part is not NoneType):
            with suppress(ValueError):
                return coerce(part, value)
    elif get_origin(hint) is Literal:
        if text in get_args(hint):
            return text
    elif get_origin(hint) is tuple:  # the command line has one text
        return tuple(value.split(WORD_END) if isinstance(value, str) else map(str, value))
    elif get_origin(hint) is Annotated:
        plain_type, limits = get_args(hint)
        value = coerce(plain_type, value)
        if limits.contain(value):
            return value
    elif hint is NoneType:
        if value is None or text.lower() in ("none", "null"):
            return None
    elif hint is bool:
        if text.lower() in TRUE | FALSE:
            return text.lower() in TRUE
    elif value is None or isinstance(value, bool) or not text:
        pass
    elif hint is str:
        return os.path.expanduser(text) if text.startswith("~/") else text
    elif math.isfinite(number := float(text)) and (hint is float or number == int(number)):
        # A float has no more than 53 bits of a whole number.
        return int(text) if hint is int and text.lstrip("+-").isdigit() else hint(number)
    raise ValueError


def nearest(word: str, valid: Sequence[str]) -> str:
    """Return a hint: the valid word with the most similar spelling, or the first of them."""
    if same := [v for v in valid if v.rpartition("/")[2] == word]:
        return f"did you mean {same[0]}?"
    close = difflib.get_close_matches(word.lower(), [v.lower() for v in valid], n=1, cutoff=0.5)
    found = [v for v in valid if v.lower() in close]
    if found:
        return f"did you mean {found[0]}?"
    return f"choose from: {', '.join(valid[:12])}{' …' if valid[12:] else ''}"


def flag(name: str) -> str:
    """Return an option as a user types it: lr_decay is --lr-decay."""
    return f"--{name.replace('_', '-')}"


def syntax_tree(path: str) -> ast.Module:
    """Parse a file of the project. Importing it could load torch."""
    return ast.parse((PROJECT / path).read_text(encoding="utf-8"))


def imported_names(package: str) -> list[str]:
    """Return what `<package>/__init__.py` imports in lines of the form `from .file import Name`."""
    nodes = syntax_tree(f"{package}/__init__.py").body
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [alias.asname or alias.name for node in froms for alias in node.names]


def torchvision_models() -> list[str]:
    """Return torchvision/NAME for each of its classification models, without importing it."""
    found = find_spec("torchvision")
    folder = Path(found.origin).parent / "models" if found and found.origin else Path()
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("[!_]*.py"))]
    function = re.compile(r"^@register_model\(\)\n.*?^def (\w+)\(", re.M | re.S)
    return [f"torchvision/{name}" for text in texts for name in function.findall(text)]


def metric_names() -> list[str]:
    """Return the keys of METRICS in utils/metrics.py."""
    nodes: list[Any] = syntax_tree("utils/metrics.py").body
    dicts = [node for node in nodes if isinstance(getattr(node, "value", None), ast.Dict)]
    metrics = [node.value for node in dicts if ast.unparse(node).startswith("METRICS")]
    return [key.value for node in metrics for key in node.keys]


def keep_class(package: str, given: type) -> str:
    """Return the name of a class that is given as an option; `find_class` finds it by this name."""
    name = given.__name__
    if name not in imported_names(package):
        given_classes[package, name] = given
    elif given.__module__.partition(".")[0] != package:
        raise UsageError(f"{package}/ has a class {name} already; give yours another name")
    return name


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the options of a file {"name": value, …} in JSON or TOML."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        options = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return {name.replace("-", "_"): value for name, value in options.items()}
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give the right path: --config=PATH") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"--config={path} has no options in JSON or TOML: {error}") from None


def find_class(package: ModuleType, name: str) -> Any:
    """Return the class `name` of the package, or the one that was given as an option."""
    return getattr(package, name, None) or given_classes[package.__name__, name]


class Options:
    """A base for classes of annotated defaults; the comment behind an option is its help."""

    __slots__ = ("__dict__", "given")  # vars(opt) holds the options and nothing else
    changeable_on_resume = frozenset[str]()  # these options do not change the result of a run
    required_path = ""  # the option whose path has to exist before the command starts
    takes_words = ""  # the option that takes the words without dashes, in `compare RUN RUN`

    def __init__(self, **given: Any) -> None:
        hints = self.hints()
        vars(self).update({name: getattr(type(self), name) for name in hints})
        given = {key.replace("-", "_"): value for key, value in given.items()}
        if "config" in hints and (path := given.get("config")):
            given = read_options(path) | given
        self.given = frozenset(given)  # the names of the options that were passed
        for name, value in given.items():
            if name not in hints:
                raise UsageError(f"there is no option {flag(name)}{self.advice(name)}")
            if name in PACKAGES and isinstance(value, type):
                value = keep_class(PACKAGES[name], value)
            try:
                setattr(self, name, coerce(hints[name], value))
            except (ValueError, OverflowError):
                wanted = describe(hints[name])
                raise UsageError(f"{flag(name)} takes {wanted}, not {str(value)!r}") from None
        choices = {"best_metric": ("utils/metrics.py", metric_names())}
        for option, package in PACKAGES.items():
            classes = [name for name in imported_names(package) if name[0].isupper()]
            classes += [name for folder, name in given_classes if folder == package]
            choices[option] = (f"{package}/", classes)
        if getattr(self, "model", "SqueezeNet") not in choices["model"][1]:
            choices["model"][1].extend(torchvision_models())
        for name, (place, known) in choices.items():
            if name in hints and (word := getattr(self, name)) not in known:
                raise UsageError(f"{flag(name)}={word} is not in {place}; {nearest(word, known)}")

    def validate(self) -> None:
        """Raise UsageError for options that do not go together. A command may have such rules."""

    @classmethod
    def hints(cls) -> dict[str, Any]:
        """Return the type of each option, those of the base classes first."""
        return get_type_hints(cls, include_extras=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the options that are saved with a run."""
        return {name: getattr(self, name) for name in self.hints() if name not in NOT_SAVED}

    def result_options(self) -> dict[str, Any]:
        """Return the options that change the result of a run."""
        options = self.state_dict().items()
        return {name: v for name, v in options if name not in self.changeable_on_resume}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        return {name: getattr(cls, name) for name in cls.hints()}

    def as_words(self) -> str:
        """Return the options that differ from the defaults as words of a command line."""
        defaults = self.defaults()
        changed = [(n, x) for n, x in self.state_dict().items() if x != defaults[n]]
        return shlex.join(f"{flag(name)}={value}" for name, value in changed)

    def resumed(self, saved: Mapping[str, Any]) -> Any:
        """Return the options of a run to resume: `saved`, with the given ones in their place.

        UsageError names the given ones that would change the result, unless `allow_changes` is
        set. A larger max_epoch is allowed. Options that no longer exist are ignored.
        """
        options = type(self)(**{name: saved[name] for name in self.state_dict() if name in saved})
        changed = [
            f"{flag(name)}={new} (the run has {old})"
            for name, new in self.result_options().items()
            if name in self.given and new != (old := getattr(options, name))
            if not (name == "max_epoch" and new > old)
        ]
        if changed and not getattr(self, "allow_changes", False):
            raise UsageError(
                f"{', '.join(changed)} would change the result: leave out, or add --allow-changes"
            )
        options.given = self.given
        vars(options).update({name: getattr(self, name) for name in self.given})
        return options

    @classmethod
    def table(cls) -> list[str]:
        """Return a line for each option that this class itself declares, and for each section."""
        hints, lines = cls.hints(), []
        with suppress(OSError, TypeError):  # a class made at a prompt has no source
            for line in inspect.getsource(cls).splitlines():
                if section := re.fullmatch(r" {4}# (.+)", line):
                    lines += ["", section[1]]
                if option := re.match(r" {4}(\w+): .*?  # (.+)", line):
                    name, meaning = option.groups()
                    default = f"{flag(name)}={getattr(cls, name)}"
                    lines.append(f"  {default:<36} {meaning} [{describe(hints[name])}]")
        return lines

    @classmethod
    def advice(cls, wrong: str) -> str:
        """Return how "there is no option --wrong" goes on: where it belongs, or what is meant."""
        if owners := [name for name in optional_commands() if wrong in options_of(name).hints()]:
            return f" here; it belongs to the command {' or '.join(owners)}"
        hints, wrong = cls.hints(), wrong.lower()
        pairs = [entry.split(": ") for entry in re.split(r"[;\n]\s*", SYNONYMS.strip())]
        names = {other: name for name, others in pairs if name in hints for other in others.split()}
        names |= {name: name for name in hints}
        if close := difflib.get_close_matches(wrong, names, n=1, cutoff=0.75):
            return f"; did you mean {flag(names[close[0]])}?"
        # No similar name: look for one word in the names, for several in names and comments.
        words = [word for word in wrong.split("_") if len(word) > 3]
        bases = [base for base in cls.__mro__ if issubclass(base, Options)]
        for line in (line for base in bases for line in base.table()):
            name = line.partition("=")[0].strip()
            if words and all(word in (line.lower() if words[1:] else name) for word in words):
                return f"; did you mean {name}?"
        return "; python main.py help shows every option"


def options_of(command: str) -> type[Options]:
    return import_module(f"utils.commands.{command}").Options


def help_text(config: type[Options], commands: Mapping[str, tuple], command: str = "") -> str:
    """Return the help page of the project, or of one command in utils/commands/."""
    trees = {name: syntax_tree(f"utils/commands/{name}.py") for name in optional_commands()}
    words = {name: text for name, (text, _) in commands.items()}
    words |= {name: (ast.get_docstring(tree) or "").split("\n")[0] for name, tree in trees.items()}
    if command in trees:
        own = options_of(command).table()
        lines = [words[command], ""]
        lines += (
            [f"Options of {command}", *own] if own else [f"{command} has no options of its own."]
        )
        lines += ["", "All options that `python main.py help` shows can be given, too."]
    else:
        command = "COMMAND"
        lines = ["Commands", *(f"  {name:<9}{text}" for name, text in words.items())]
        lines += config.table()
    return "\n".join([f"python main.py {command} --option=value …", "", *lines])


def split_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, str | bool]]:
    """Split `COMMAND WORD --name=value --name value --flag` into the command and its options.

    Words without dashes become the option that the command names as `takes_words`. In front of
    them, `--flag` needs no value: `predict --json PATH`.
    """
    command, waiting = "", ""
    options: dict[str, str | bool] = {}
    words: list[str] = []
    own = Options
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in options:
                raise UsageError(f"--{name} is given twice")
            options[name] = value if equals else True
            waiting = "" if equals else name
        elif waiting and (word.lower() in TRUE | FALSE or own.hints().get(waiting) is not bool):
            options[waiting], waiting = word, ""
        elif own.takes_words:
            words.append(word)
            waiting = ""
        elif command or word.startswith("-"):
            raise UsageError(f"cannot read {word!r}; options are written --name=value")
        else:
            command = word
            own = options_of(command) if command in optional_commands() else Options
    if words:
        options[own.takes_words] = WORD_END.join(words)
    return command, options


def check_usage(
    config: type[Options], commands: Mapping[str, tuple[str, str | None]], arguments: list[str]
) -> list[str]:
    """Return `arguments` in the one form `COMMAND --name=value …`, or end the program.

    Exit code 2 and one line for wrong usage, 0 for help. Takes no more than the standard library.
    """
    known = [*commands, *optional_commands()]
    words = [word for word in arguments if word not in ("-h", "--help")]
    help_wanted = len(words) < len(arguments) or words[:1] in ([], ["help"])
    try:
        command, given = split_arguments(words[words[:1] == ["help"] :] or ["help"])
        if command not in known:
            raise UsageError(f"there is no command {command!r}; {nearest(command, known)}")
        if help_wanted:
            print(help_text(config, commands, command))
            sys.exit(0)
        options = config if command in commands else options_of(command)
        required = commands[command][1] if command in commands else options.required_path
        opt, hints = options(**given), options.hints()
        opt.validate()
        inputs = [name for name in opt.given if InputPath in (hints[name], *get_args(hints[name]))]
        needed = [required] if required and not getattr(opt, "resume", False) else []
        for name in [*needed, *inputs]:
            path = getattr(opt, name)
            if isinstance(path, str) and not os.path.exists(path):  # also False for an odd name
                raise UsageError(f"{path} does not exist; give the right path: {flag(name)}=PATH")
        values = {name: getattr(opt, name) for name in given}
        texts = {n: WORD_END.join(x) if isinstance(x, tuple) else x for n, x in values.items()}
        return [command, *(f"--{name}={value}" for name, value in texts.items())]
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
