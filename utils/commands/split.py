"""Write split.csv: which pictures are train, val or test, for good, with copies on one side."""

from pathlib import Path

from config import DefaultConfig


class Options(DefaultConfig):
    """`split` has no options of its own."""

    required_path = "train_data_root"


def run(opt: Options) -> Path:
    """Look at every picture, find copies, and write split.csv and split.html; return the first.

    They are written into the folder of the pictures, or where an older split.csv is: its pictures
    keep their splits. A picture that is there twice, with two labels, is an error: no split.csv is
    written. Pictures of a test folder are compared as well, if --test-data-root is given.
    """
    import data
    from data.read_image import printable
    from data.split import find_split_file
    from utils import notebook
    from utils.options import UsageError, find_class
    from utils.preparation.inspection import TwoLabelsError, inspect_pictures
    from utils.signals import StopRequest

    data_set = find_class(data, opt.dataset)
    if not issubclass(data_set, data.Pictures):
        raise UsageError(f"{opt.dataset} decides its split by itself: split.csv is for Pictures")
    root, test_root = Path(opt.train_data_root), Path(opt.test_data_root)
    file, _ = find_split_file(root)
    folder = file.parent if file else root.parent if root.is_file() else root
    with StopRequest(advice="; the same command goes on") as stop:
        inspection = inspect_pictures(
            root,
            folder,
            layout=opt.layout,
            flat_classes=data_set.classes,
            test_root=test_root if "test_data_root" in opt.given else None,
            memory=Path(opt.cache_root) / "seen.sqlite",
            after_each=stop.raise_if_received,
        )
    unreadable = inspection.unreadable().items()
    left_out = inspection.left_out | {inspection.pictures[n].path: why for n, why in unreadable}
    for path, reason in left_out.items():
        print(f"no row: {printable(path)} ({reason})")
    inspection.write_page(opt.val_share)
    notebook.show_page(folder / "split.html")
    if contradictions := sorted({*inspection.contradictions().values()}):
        print(*contradictions, sep="\n")
        more = f", and {len(contradictions) - 1} more pairs" if contradictions[1:] else ""
        advice = f"see {folder / 'split.html'}, and delete the wrong ones"
        raise TwoLabelsError(f"{contradictions[0]}{more}: {advice}")
    print(f"{folder}: {inspection.write(opt.val_share)}")
    return folder / "split.csv"
