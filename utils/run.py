"""A training run: its folder, log and signals, and how its state is saved and resumed."""

import signal
import tempfile
import time
from bdb import BdbQuit
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils import (
    ALL_CORES,
    checkpoint,
    distributed,
    files,
    metrics,
    notebook,
    profiler,
    recipe,
    run_folder,
)
from utils.checkpoint import plain_copy
from utils.device import OWN_CORE, Precision, has_native_bf16, use_cores
from utils.failures import one_line
from utils.guard import NotFinite, not_finite
from utils.options import UsageError
from utils.signals import Stopped, StopRequest
from utils.synchronize import copy_from_first
from utils.watch import Answers, Watch

if TYPE_CHECKING:
    from config import DefaultConfig

Batch = tuple[int, Tensor, Tensor]  # step, images (N, 3, H, W), labels (N,)
History = list[dict[str, float]]  # a row an epoch
DRY_RUN_BATCHES = 10  # of train and of val
# In place of a signal's number: the user has changed an option in the debugger, or typed `q`.
CHANGED, QUIT = 1000, 1001


class Run:
    """Keeps a run safe: after a signal, an error or a full disk it can be resumed.

    `Run.open` decides whether the run is new or resumed, `start` makes its folder and restores its
    state. `with run:` around the loops notes signals, and saves on the way out if an exception ends
    them. `step_done` and `epoch_done` tell it where the loops are. The loops wait for a copy of the
    state in memory; a thread writes it. A disk that fails costs a warning, not the run.
    """

    folder: Path  # a new run gets it in `start`

    def __init__(self, opt: "DefaultConfig", folder: Path | None, saved: Mapping[str, Any]) -> None:
        self.opt, self.saved = opt, saved
        if folder:
            self.folder = folder
        self.scratch = None
        if opt.dry_run:  # Windows cannot delete a file that is open, as after a failure
            self.scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.profiled = False
        self.page_shown: Any = None  # the report in a notebook
        self.unwritten_lines: list[str] = []  # of log.txt
        self.disk_failures: dict[Path, str] = {}  # files whose newest contents are not on the disk
        self.stop = StopRequest(advice="; --resume goes on")
        self.known_options = opt.state_dict()  # to all ranks

    @classmethod
    def open(cls, opt: "DefaultConfig") -> "Run":
        """Return a new run, or the one that --resume names. Nothing is written yet."""
        if opt.dry_run:
            if opt.resume:
                raise UsageError("--dry-run begins a new run: leave out --resume")
            opt.max_epoch, opt.limit_batches = 1, DRY_RUN_BATCHES
        distributed.start(opt.use_gpu)
        run_class = cls
        if distributed.RANK:
            from utils.follower import Follower  # here, because it is a kind of Run

            run_class = Follower
        return run_class(*distributed.from_first(cls._find, opt))

    @staticmethod
    def _find(opt: "DefaultConfig") -> tuple["DefaultConfig", Path | None, Mapping[str, Any]]:
        """Return the options, the folder and the checkpoint of the run to go on with."""
        folder = Path(opt.resume) if isinstance(opt.resume, str) else None
        begins = distributed.LAUNCH and not opt.resume and not opt.dry_run
        if begins and (found := run_folder.run_of_launch(opt.checkpoint_root, distributed.LAUNCH)):
            folder, opt = found, type(opt)()  # torchrun starts it again: it has its own options
        if opt.resume is True and not (folder := run_folder.newest_run(opt.checkpoint_root)):
            tqdm.write(f"{opt.checkpoint_root} has no run to resume; a new one starts")
        if folder is None:
            return opt, None, {}
        folder = folder.parent if folder.is_file() else folder  # --resume=RUN/last.pth
        saved = checkpoint.read_newest(folder / "last.pth")
        return opt.resumed(saved["options"]), folder, saved

    def start(
        self, train_loader: Any, val_loader: Any, amp: Precision, **tracked: Any
    ) -> tuple[int, History]:
        """Return the step and the history to begin with; restore the tracked objects.

        tracked: the objects whose `state_dict` makes up the state of the run, among them `model`.
        """
        dataset, self.steps_per_epoch = train_loader.dataset, len(train_loader)
        changed_options = self.opt.as_words()
        self.opt.precision = amp.name  # "auto" may mean something else on another machine
        self.amp, self.model = amp, tracked["model"]
        metadata = {name: list(getattr(dataset, name)) for name in ("classes", "mean", "std")}
        metadata["data"] = dataset.fingerprint
        metadata["device"] = next(self.model.parameters()).device.type
        self.metadata = plain_copy(metadata)
        is_new = not self.saved
        if is_new:
            root = self.scratch.name if self.scratch else self.opt.checkpoint_root
            self.folder = run_folder.new_run(root, Path(self.opt.model).name)
        self.lock = run_folder.lock(self.folder, self.log)
        distributed.from_first(lambda: self.folder)
        self.tracked = {**tracked, "amp": amp}
        self._restore()
        copy_from_first(self.model)
        # Only now: a checkpoint that does not fit changes no file.
        for half_written in self.folder.glob(".*.tmp"):  # of a run that was killed
            half_written.unlink()
        if is_new:
            environment = run_folder.environment(distributed.LAUNCH)
            files.write_json(self.folder / "environment.json", environment)
        epoch, step = self.saved.get("epoch", 0), self.saved.get("step", 0)
        epoch_is_open = step == self.steps_per_epoch  # its val pass has to be made
        x = epoch * self.steps_per_epoch + step
        resume_at = x + (not epoch_is_open) if self.saved else None
        loaders = train_loader, val_loader
        self.show = Watch(self.opt, self.folder, self.model, *loaders, resume_at)
        self.vis = self.tracked["vis"] = self.show.vis
        self.vis.load_state_dict(self.saved.get("vis", {}))
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future | None = None  # the newest save
        self.unshown: set[str] = set()  # lines of the log on what could not be shown
        self.unfinished: deque[Future] = deque()  # what the thread has been given
        self.saved_at, self.file_verified = time.monotonic(), False
        self.began = time.monotonic() - self.saved.get("seconds", 0.0)
        self._write_options()
        self.log(f"options: {changed_options or 'the defaults'}")
        if not self.saved:
            self._show(self.show.start)
        history = self.saved.get("history", [])
        self._note_position(epoch=epoch, step=step, history=history)
        return step, history

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of the epochs to do, until one of the options ends the run."""
        while (epoch := self.position["epoch"]) < self.opt.max_epoch:
            seconds, history = time.monotonic() - self.began, self.position["history"]
            if reason := distributed.from_first(recipe.end_early, self.opt, history, seconds):
                self.log(f"the run ends after epoch {epoch}: {reason}")
                return
            yield epoch

    def _restore(self) -> None:
        if not self.saved:
            return
        for name, item in self.tracked.items():
            if name == "model":
                checkpoint.load_weights(item, self.saved[name], source=self.folder)
            else:
                item.load_state_dict(self.saved[name])
        self.log(f"goes on at epoch {self.saved['epoch'] + 1}, step {self.saved['step'] + 1}")
        device = next(self.model.parameters()).device
        if device.type != self.saved["device"]:
            self.log(f"it began on {self.saved['device']}: on {device.type} the bits will differ")
        if self.amp.name == "bf16" and not has_native_bf16(device):
            self.log(
                "it began in bfloat16, which is slow here: see --precision and --allow-changes"
            )

    def log(self, line: str) -> None:
        """Print a line without breaking the progress bar, and keep it in log.txt."""
        tqdm.write(line)
        self.unwritten_lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if hasattr(self, "folder"):
            path, errors = self.folder / "log.txt", "backslashreplace"  # of bytes that are no UTF-8
            with suppress(OSError), open(path, "a", encoding="utf-8", errors=errors) as file:
                file.writelines(self.unwritten_lines)
                self.unwritten_lines.clear()

    def watch(self, split: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches (step, images, labels) of a split; end the run if a signal comes.

        The first batch of the run is shown.
        """
        if self.opt.profile and split == "train" and not self.profiled:
            self.profiled = True
            batches = profiler.profiled(batches, self.folder, self.log)
        for step, images, labels in batches:
            if step == 0 and self.position["epoch"] == 0:
                self._show(self.show.batch, split, images, labels, self._steps_done())
            yield step, images, labels
            self._end_if_asked()

    def step_done(self, epoch: int, step: int, history: History, **numbers: Any) -> None:
        """Note that `step` steps of the epoch are done; save if it is time.

        numbers: to be shown every --print-freq steps, among them the loss.
        """
        self._note_position(epoch=epoch, step=step, history=history)
        # Not at the last of several steps: a resumed run cannot tell its point from the epoch's.
        x, steps = self._steps_done(), self.steps_per_epoch
        is_due = step % max(1, min(self.opt.print_freq, steps - 1)) == 0
        if x == 1 or (is_due and (step < steps or steps == 1)):
            values = {name: float(number) for name, number in numbers.items()}
            self._show(self.show.step, x, values)
        if self.amp.updates == 1:
            self._name_idle_weights()
        if time.monotonic() - self.saved_at > 60 * self.opt.save_minutes:
            self.save("last.pth")

    def epoch_done(self, epochs: int, history: History, logits: Tensor, labels: Tensor) -> None:
        """Write the newest row of the history to metrics.csv and the log; show it; save all.

        logits (M, K), labels (M,): of the val split.
        """
        row = history[-1]
        with self.disk(self.folder / "metrics.csv"):
            files.write_csv(self.folder / "metrics.csv", history)
        self.log(self.show.epoch_line(row, self.opt.max_epoch))
        answers = self.show.answers(logits, labels)
        self._note_position(epoch=epochs, step=0, history=history)
        x = self._steps_done()
        self._show(self.show.epoch, x, row)
        if self.opt.histograms:
            self._show(self.show.layers, x)
        self._in_thread(self._show, self.show.pictures, x, answers)  # before the state is written
        is_best = metrics.is_best(self.opt.best_metric, history)
        self.save(*(["best.pth", "last.pth"] if is_best else ["last.pth"]))
        state = f"Epoch {epochs} of {self.opt.max_epoch}."
        self._in_thread(self._show, self._write_page, state, history, answers)
        self._end_if_asked()

    def load_best(self) -> None:
        """Give the model its best weights."""
        self.wait()
        self.state_version = None  # from here on the weights do not belong to the position
        self.best_epoch, path = self.position["epoch"], self.folder / "best.pth"
        if path.exists():  # else the disk is full
            best = checkpoint.read(path)
            checkpoint.load_weights(self.model, best["model"], source=path)
            self.best_epoch = best["epoch"]
        copy_from_first(self.model)

    def write_report(self, history: History, logits: Tensor, labels: Tensor) -> None:
        """Write report.html and log what the best weights do on the val split.

        logits (M, K), labels (M,): what these weights give.
        """
        mirror = ", with mirror images" if self.opt.mirror else ""
        if self.opt.calibrate:
            logits = logits / self._calibrate(logits, labels)
        state = f"The weights of epoch {self.best_epoch} of {self.opt.max_epoch}{mirror}"
        answers = self.show.answers(logits, labels)
        self._show(self._write_page, f"{state}.", history, answers, with_looks=True)
        # One step after the end, so that a resumed run replaces these points.
        self._show(self.show.end, self._steps_done() + 1, answers.summary)
        self._end_if_asked()
        text = metrics.as_text(answers.summary, self.metadata["classes"])
        self.log(f"the weights of epoch {self.best_epoch} on val{mirror}:\n{text}")
        if self.opt.dry_run:
            self.log("the dry run is complete: every part works; its files are deleted")
            return
        self.log(f"weights   {self.folder / 'best.pth'}\nreport    {self.folder / 'report.html'}")

    def _calibrate(self, logits: Tensor, labels: Tensor) -> float:
        """Return the temperature that suits these logits, and add it to best.pth."""
        temperature = metrics.fit_temperature(logits, labels)
        losses = (metrics.loss(x, labels) for x in (logits, logits / temperature))
        words = "the val loss goes from {:.4f} to {:.4f}".format(*losses)
        self.log(f"temperature {temperature:.3f}: {words}")
        path = self.folder / "best.pth"
        if path.exists():  # else the disk is full
            with self.disk(path):
                checkpoint.write(path, checkpoint.read(path) | {"temperature": temperature})
        return temperature

    def _show(self, call: Callable, *args: Any, **options: Any) -> None:
        """Show something; an error costs a line, not the run."""
        try:
            call(*args, **options)
        except Exception as error:
            line = f"what people see is incomplete ({one_line(error)}); the run goes on"
            if line not in self.unshown:
                self.log(line)
            self.unshown.add(line)

    def _write_page(
        self, state: str, history: History, answers: Answers, with_looks: bool = False
    ) -> None:
        path = self.folder / "report.html"
        with self.disk(path):
            seconds = time.monotonic() - self.began
            files.write_text(path, self.show.page(state, history, answers, seconds, with_looks))
            self.page_shown = notebook.show_page(path, self.page_shown)

    def _steps_done(self) -> int:
        return self.position["epoch"] * self.steps_per_epoch + self.position["step"]

    def save(self, *names: str) -> None:
        """Copy the state; a thread writes it to the files `names` of the folder.

        Raises NotFinite for weights that are NaN or infinite: no file shall have them.
        """
        state = {name: item.state_dict() for name, item in self.tracked.items()}
        contents = plain_copy({**state, "options": self.opt.state_dict(), **self.position})
        parameters = dict(self.model.named_parameters())
        if bad := not_finite((n, contents["model"].get(n)) for n in parameters):
            raise NotFinite(f"{bad[0]} is not finite")
        if self.opt.state_dict() != self.written_options:  # changed in the debugger
            self._write_options()
        contents["seconds"] = time.monotonic() - self.began
        if self.writing:
            self.writing.result()  # one copy of the state at a time
        self.writing = self._in_thread(self._write, contents | self.metadata, names)
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Wait until the thread has written what it was given."""
        while self.unfinished:
            self.unfinished.popleft().result()

    def _in_thread(self, call: Callable, *args: Any) -> Future:
        """Let the thread make a call, after those that it has been given before."""
        while self.unfinished and self.unfinished[0].done():
            self.unfinished.popleft().result()  # raises its error, if it had one
        self.unfinished.append(self.writer.submit(call, *args))
        return self.unfinished[-1]

    @contextmanager
    def disk(self, path: Path) -> Iterator[None]:
        """Warn if `path` cannot be written. If that is still so at the end, the run fails."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if reason not in self.disk_failures.values():
                self.log(f"{path} cannot be written ({reason}); the run goes on and tries again")
            self.disk_failures[path] = reason
        else:
            self.disk_failures.pop(path, None)

    def __enter__(self) -> "Run":
        self.stop.__enter__()
        torch.autograd.set_detect_anomaly(self.opt.detect_anomaly)
        if self.metadata["device"] == "cpu":
            use_cores(OWN_CORE)
        return self

    def __exit__(self, error_type: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BdbQuit):  # `q` in the debugger, while the other ranks wait
            with suppress(distributed.OtherRankEnded):
                distributed.integers_from_all(QUIT)  # see _end_if_asked
        try:
            if error and self.state_version == self._state_version():
                self.save("last.pth")
            self.wait()
        except FloatingPointError as not_saved:
            error = not_saved
        finally:
            try:  # these two wait: in a notebook, Ctrl-C may come once more and end them
                self.writer.shutdown()
                self.vis.close(wait=not error)
            finally:
                self._wait_for_all(error)
                self.lock.close()
                torch.autograd.set_detect_anomaly(False)
                if self.scratch:
                    self.scratch.cleanup()
                use_cores(ALL_CORES)
                self.stop.__exit__(error_type, error, trace)
        if isinstance(error, FloatingPointError):
            raise NotFinite(f"{error}; {self._advice()}") from error
        if self.disk_failures and not error:
            words = ", ".join(f"{path} ({why})" for path, why in self.disk_failures.items())
            raise OSError(f"the run is complete but not all on the disk: {words}")

    def _end_if_asked(self) -> None:
        """End the run if a signal has come. All ranks meet here, and end at the same step.

        They meet after each batch of train and val, after each epoch, after the report and at the
        end, where the first rank has written all. Options that were changed in the debugger of the
        first rank are given to all.
        """
        leads = distributed.RANK == 0 and distributed.WORLD_SIZE > 1
        has_news = leads and self.opt.state_dict() != self.known_options
        own = CHANGED if has_news else self.stop.received or 0
        number = max(distributed.integers_from_all(own))
        if number == QUIT:
            raise BdbQuit
        if number == CHANGED:
            vars(self.opt).update(distributed.from_first(lambda: vars(self.opt)))
            self.known_options = self.opt.state_dict()
            return  # a signal that has come meanwhile is noted, and found at the next meeting
        if number:  # not one that has come since: the other ranks do not know it yet
            self.stop.received = number
            self.stop.raise_if_received()

    def _wait_for_all(self, error: BaseException | None) -> None:
        """Let all ranks end together, and only after the first one has written all."""
        if error is None or isinstance(error, Stopped | BdbQuit):
            with suppress(distributed.OtherRankEnded):
                distributed.integers_from_all(0)
        if isinstance(error, Stopped) and distributed.WORLD_SIZE > 1:
            # torchrun sends it to all others as soon as the first of them has ended.
            self.stop.old_handlers[signal.SIGTERM] = signal.SIG_IGN

    def _note_position(self, **position: Any) -> None:
        self.position, self.state_version = position, self._state_version()

    def _state_version(self) -> tuple[int, int]:
        """Return two counters: updates of the weights, and changes of the model's buffers.

        If they have grown since the position was noted, the state does not belong to it any more.
        """
        return self.amp.updates, sum(buffer._version for buffer in self.model.buffers())

    def _name_idle_weights(self) -> None:
        weights = self.model.named_parameters()
        idle = [name for name, weight in weights if weight.requires_grad and weight.grad is None]
        if idle:
            more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
            self.log(f"no gradient reaches {', '.join(idle[:4])}{more}; is it used in forward()?")

    def _write(self, contents: Mapping[str, Any], names: tuple[str, ...]) -> None:
        self.vis.flush()  # a run that is resumed with this state shows no step before it again
        for name in names:
            path = self.folder / name
            with self.disk(path):
                checkpoint.write(path, contents, keep_previous=name == "last.pth")
                if (
                    not self.file_verified
                ):  # the first file shows that a run of this kind can be read
                    checkpoint.read(path, digest_required=True)
                    self.file_verified = True

    def _write_options(self) -> None:
        self.written_options = self.opt.state_dict()
        with self.disk(self.folder / "config.json"):
            files.write_json(self.folder / "config.json", self.written_options)

    def _advice(self) -> str:
        last = self.folder / "last.pth"
        if not last.exists():
            return "nothing is saved yet: start again with a lower --lr"
        return f"{last} is good: --resume={self.folder} --allow-changes and a lower --lr go on"
