"""Reads a repository of updates with python-tuf's client: tuf_client.py REPO TARGET...

Begins with the first root, as a device does, and downloads each target.
"""

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlparse

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class Folder(FetcherInterface):
    """Files instead of a server; what is not there is a 404."""

    def _fetch(self, url):
        path = Path(urlparse(url).path)
        if not path.is_file():
            raise DownloadHTTPError(f"no {path}", 404)
        yield path.read_bytes()


repo, targets = Path(sys.argv[1]), sys.argv[2:]
with tempfile.TemporaryDirectory() as where:
    updater = Updater(
        where,
        f"file://{repo}/metadata/",
        where,
        f"file://{repo}/targets/",
        Folder(),
        bootstrap=(repo / "metadata/1.root.json").read_bytes(),
    )
    updater.refresh()
    for name in targets:
        info = updater.get_targetinfo(name)
        assert info is not None, f"{name} is no target"
        assert Path(updater.download_target(info)).stat().st_size == info.length
    root = updater._trusted_set.root.version
print(f"root {root}, {len(targets)} targets")
