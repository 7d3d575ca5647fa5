"""What a Jupyter notebook needs; everywhere else, nothing here shows anything."""

import html
import sys
import traceback
from pathlib import Path
from typing import Any

# A frame of its own: the styles of a page would reach the rest of the notebook.
FRAME = '<iframe srcdoc="{}" style="width: 100%; height: 40em; border: 1px solid #999"></iframe>'


class OneLineError(Exception):
    """An exception whose message says it all: a notebook shows no traceback of it."""

    def _render_traceback_(self) -> list[str]:  # IPython calls it
        error: BaseException | None = self
        while error:  # IPython keeps the last error, whose frames would keep the model in memory
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        return [f"{type(self).__name__}: {self}"]


def in_notebook() -> bool:
    """Return whether a notebook shows what is printed. Loads nothing."""
    kernel = sys.modules.get("ipykernel.iostream")
    return kernel is not None and isinstance(sys.stdout, kernel.OutStream)


def bar_options() -> dict[str, Any]:
    """Return the options of tqdm that show a bar in a terminal and in a notebook only.

    In a notebook it is text on stdout, as the log is. A widget would need ipywidgets, and would
    leave an empty box for each epoch.
    """
    if in_notebook():
        return {"disable": False, "file": sys.stdout, "mininterval": 0.5}  # in seconds
    return {"disable": None}


def show_page(path: Path, shown: Any = None) -> Any:
    """Show a file of HTML in the notebook, in the place of `shown`; return what is shown now."""
    if not in_notebook():
        return None
    from IPython.display import display
    from tqdm import tqdm

    page = FRAME.format(html.escape(path.read_text(encoding="utf-8")))
    contents = {"text/html": page, "text/plain": str(path)}
    with tqdm.external_write_mode():  # takes the bar away for a moment
        if shown is None:
            return display(contents, raw=True, display_id=True)
        shown.update(contents, raw=True)
        return shown
