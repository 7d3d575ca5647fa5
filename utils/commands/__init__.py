"""Commands that can be removed: one file each. Delete the file, and its line in main.py."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def names() -> list[str]:
    """List the commands whose files are here."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def get(name: str, *parts: Any) -> Callable[..., Any]:
    """Return the command `utils/commands/<name>.py`, which is imported when it is called.

    parts: what its function `run` takes besides the options.
    """

    def call(*words: Any, **options: Any) -> Any:
        from utils import distributed  # here: options.py imports this file, before torch is loaded
        from utils.options import UsageError

        if distributed.WORLD_SIZE > 1:
            raise UsageError(f"torchrun is for train, val and test: call {name} without it")
        module = import_module(f"utils.commands.{name}")
        if words:
            options[module.Options.takes_words] = words
        opt = module.Options(**options)
        opt.validate()
        return module.run(opt, *parts)

    call.__name__ = name
    return call
