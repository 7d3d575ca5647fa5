"""Open a study of Optuna in its database; make what does not exist."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from config import DefaultConfig
from utils import files
from utils.options import UsageError, flag


class SweepError(RuntimeError):
    """A study that cannot go on: one line that says why."""


def open_study(opt: Any, ranges: Mapping[str, Any], folder: Path, better: Callable) -> optuna.Study:
    """Return the study of the options. The first trial of a new one has the default options.

    better: min or max. Raises UsageError if the study was begun with other options, for then its
    trials could not be compared.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    files.make_folder(folder)
    storage = open_storage(opt.storage or f"sqlite:///{folder.as_posix()}/study.sqlite")
    # Until its learning rate falls, a good run may look bad: none is pruned in its first third.
    epochs = max(getattr(opt.max_epoch, "values", [opt.max_epoch]))
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=math.ceil(epochs / 3))
    settings = {"study_name": opt.study, "storage": storage, "pruner": pruner}
    names = DefaultConfig.hints().keys() & opt.result_options()
    options = {name: str(getattr(opt, name)) for name in sorted(names)}
    try:
        direction = StudyDirection.MAXIMIZE if better is max else StudyDirection.MINIMIZE
        study = optuna.create_study(direction=direction, **settings)
        study.set_user_attr("options", options)
        defaults = {name: getattr(DefaultConfig, name) for name in ranges}
        if all(ranges[name].holds(value) for name, value in defaults.items()):
            study.enqueue_trial(defaults)
    except DuplicatedStudyError:
        study = optuna.load_study(**settings)
    for name, old in study.user_attrs.get("options", {}).items():
        if old != (new := options.get(name, old)):
            words = f"the study {opt.study} has {flag(name)}={old}, not {new}"
            raise UsageError(f"{words}: give the same, or another --study=NAME")
    return study


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a database, and make its tables if it has none.

    If two workers do that at the same moment, one of them fails: it finds the tables a bit later.
    """
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for _ in range(3):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except SQLAlchemyError as error:
            reason = str(error).splitlines()[0]
            time.sleep(1)
    raise SweepError(f"--storage cannot be opened: {reason}")  # no URL: it may have a password
