import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture
def real() -> Callable[..., Path]:
    """The raw folder with the publisher's files: `real("mnist")` skips the test unless TRL_RAW_DATA holds mnist/."""

    def find(*folders: str) -> Path:
        raw = os.environ.get("TRL_RAW_DATA")
        if not raw or not any((Path(raw) / folder).is_dir() for folder in folders):
            pytest.skip(f"needs the raw files: no folder {' or '.join(folders)} in TRL_RAW_DATA={raw or ''}")
        return Path(raw)

    return find


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache, and no raw folder."""
    monkeypatch.delenv("TRL_RAW_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trl"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server that serves tmp_path."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path))) as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def broken_copy(tmp_path: Path) -> Callable[..., Path]:
    """Links to all files of a folder, but one is a changed copy; returns the raw folder that holds it."""

    def make(folder: Path, file: str, change: Callable[[bytes], bytes]) -> Path:
        copy = tmp_path / "broken" / folder.name
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            if path.name == file:
                (copy / file).write_bytes(change(path.read_bytes()))
            else:
                (copy / path.name).symlink_to(path)
        return copy.parent

    return make
