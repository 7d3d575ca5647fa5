"""The files that visdom's page loads: from a cache, a folder of the user, or the network.

visdom's own server downloads them at each start, and ends where it cannot.
"""

import hashlib
import shutil
import sys
import tarfile
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from utils.files import digest_of, write_bytes

REGISTRY = "https://unpkg.com"  # serves the files of npm packages
SECONDS_TO_ANSWER = 10.0


class PageError(OSError):
    """A file of the page cannot be had. The message is one line that says what to do."""


class Asset(NamedTuple):
    """A file of an npm package that visdom's page loads."""

    place: str  # where the page looks for it, below static/
    source: str  # package@version/path
    digest: str  # SHA-256

    @property
    def package(self) -> str:
        return self.source.partition("/")[0]


def needed_assets(version: str) -> list[Asset]:
    """List what the page of this visdom version loads besides visdom's own files."""
    line = "0.2" if version.startswith("0.2.") else "0.3"
    table = Path(__file__).with_name("page.txt").read_text(encoding="utf-8")
    rows = [row.split() for row in table.splitlines() if not row.startswith("#")]
    return [Asset(*rest) for needed_by, *rest in rows if needed_by in ("all", line)]


def prepare_page(cache_root: Path, given: str | None) -> Path:
    """Return the folder of the page: visdom's own files, and assets that have the right digests.

    An asset that is not there comes from the folder `given`, or else from the network.
    """
    version = metadata.version("visdom")
    page = cache_root / f"visdom-{version}"
    assets = {page / asset.place: asset for asset in needed_assets(version)}
    missing = [a for file, a in assets.items() if not file.exists() or digest_of(file) != a.digest]
    contents = find_assets(missing, Path(given)) if given else download_assets(missing)
    for asset in missing:  # only now, when all of them are right
        write_bytes(page / asset.place, contents[asset])
    own = Path(str(metadata.distribution("visdom").locate_file("visdom/static")))
    for path in own.rglob("*"):
        copy = page / path.relative_to(own)
        # `python -m visdom.server` leaves assets among visdom's own files, of unknown digest.
        if path.is_file() and path.suffix != ".map" and copy not in assets:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return page


def find_assets(assets: list[Asset], folder: Path) -> dict[Asset, bytes]:
    """Return the contents of the assets, from a folder with files or packages (.tgz)."""
    names = {Path(asset.source).name for asset in assets}
    found = {hashlib.sha256(contents).hexdigest(): contents for contents in read(folder, names)}
    if lacking := [asset for asset in assets if asset.digest not in found]:
        wanted = f"{lacking[0].source} (no file has its SHA-256 digest)"
        raise without(lacking, f"{folder} lacks {wanted}: run the line above in it")
    return {asset: found[asset.digest] for asset in assets}


def read(folder: Path, names: set[str]) -> Iterator[bytes]:
    """Yield the contents of every file in the folder, or in a package there, with such a name."""
    for path in folder.rglob("*"):
        if path.name in names and path.is_file():
            yield path.read_bytes()
        elif path.suffix == ".tgz":
            with tarfile.open(path) as package:
                for member in package:
                    file = package.extractfile(member) if member.isfile() else None
                    if file and Path(member.name).name in names:
                        yield file.read()


def download_assets(assets: list[Asset]) -> dict[Asset, bytes]:
    """Return the contents of the assets, from the network."""
    contents = {}
    for asset in assets:
        address = f"{REGISTRY}/{asset.source}"
        try:
            request = Request(address, headers={"User-Agent": "visdom"})
            with urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
                contents[asset] = answer.read()
        except (OSError, HTTPException) as error:
            reason = f"{address} cannot be read ({getattr(error, 'reason', error)})"
            advice = "run the line above in a new folder, and add --assets=FOLDER"
            raise without(assets, f"{reason}: {advice}") from None
        if hashlib.sha256(contents[asset]).hexdigest() != asset.digest:
            raise PageError(f"{address} has a wrong SHA-256 digest, so nothing of it was used")
    return contents


def without(assets: list[Asset], message: str) -> PageError:
    """Return the error for files that cannot be had, and print the command that gets them."""
    packages = dict.fromkeys(asset.package for asset in assets)
    print("where there is a network: npm pack", *packages, file=sys.stderr)
    return PageError(message)
