"""Training on shards that lie elsewhere: the same weights, whichever way they came."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder


@pytest.fixture
def url(low_digits: Path) -> Iterator[str]:
    """Serve the shards over HTTP on this host."""
    handler = functools.partial(_Quiet, directory=str(low_digits))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_shards_from_a_url_give_the_same_weights(
    small_train, url: str, tmp_path: Path, finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.shards.folder={tmp_path / 'cache'}"
    assert small_train(url, "name=finished", cache) == 0
    mine = RunFolder(tmp_path / "runs" / "finished")
    weights = [folder.package / "model.safetensors" for folder in (mine, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "loader of a rank: at most" in capsys.readouterr().out
    assert list((tmp_path / "cache").rglob("*.tar"))


def test_staged_shards_give_the_same_weights_and_the_source_may_go(
    small_train, low_digits: Path, tmp_path: Path, finished: RunFolder
) -> None:
    staged = ("data.shards.kind=stage", f"data.shards.folder={tmp_path / 'node'}")
    assert small_train(low_digits, "name=finished", *staged) == 0
    mine = RunFolder(tmp_path / "runs" / "finished")
    weights = [folder.package / "model.safetensors" for folder in (mine, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    copies = {path.name: path.stat().st_size for path in (tmp_path / "node").rglob("*.tar")}
    sources = {path.name: path.stat().st_size for path in low_digits.rglob("*.tar")}
    assert set(copies.values()) == set(sources.values())


def test_a_url_without_a_folder_for_its_shards_is_refused(
    small_train, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_train(url, "name=finished") == 2
    assert "data.shards.folder" in capsys.readouterr().err
