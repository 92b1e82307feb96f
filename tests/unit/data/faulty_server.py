"""A real web server on loopback that serves a folder with ranges, and misbehaves when told to."""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    status: int | None = None
    """Answered instead of the file."""
    page: bool = False
    """A web page with status 200 instead of the file."""
    cut: int | None = None
    """The connection breaks after so many bytes of the body."""
    stall_s: float = 0.0
    """It stands still for so long before it breaks, or ends."""
    lie: int = 0
    """Content-Length says so many bytes more than there are (less, if negative)."""
    no_ranges: bool = False
    """Range is ignored: the whole file comes, with status 200."""
    shift: int = 0
    """The range that comes begins so many bytes later than the one asked for."""
    bytes_per_s: float = 0.0
    """So slowly; 0 is at once."""
    garbage: bool = False
    """Other bytes of the same number."""
    extra: int = 0
    """So many bytes too many, honestly announced."""


@dataclass
class FaultyServer:
    """The folder that is served, what is to go wrong, and what was asked for."""

    folder: Path
    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """By file: the next answers; the last one of a list stays if `forever` has the file."""
    forever: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """(file, first byte) of every request."""
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes of bodies by file."""

    closed: bool = False
    """Connections that are still open get no answer either."""

    def next_fault(self, file: str) -> Fault:
        faults = self.faults[file]
        if not faults:
            return Fault()
        return faults[0] if len(faults) == 1 and file in self.forever else faults.pop(0)

    def always(self, file: str, fault: Fault) -> None:
        self.faults[file], _ = [fault], self.forever.add(file)


@contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    """Serve `folder` on a free port of 127.0.0.1."""
    state = FaultyServer(folder)
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closed = True
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of errors, but not of clients that have gone: that is what is tested."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: FaultyServer
    protocol_version = "HTTP/1.1"
    timeout = 1.0  # idle connections would pile up in the process of the tests

    def do_GET(self) -> None:
        if self.state.closed:
            self.close_connection = True
            return
        file = self.path.lstrip("/")
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.state.asked.append((file, start))
        fault, path = self.state.next_fault(file), self.state.folder / file
        if fault.status or not path.is_file():
            self.send_error(fault.status or 404)
        elif fault.page:
            self._answer(200, b"<!DOCTYPE html><html>please log in</html>", Fault(), {})
        else:
            self._file(file, path.read_bytes(), start, fault)

    def _file(self, file: str, data: bytes, start: int, fault: Fault) -> None:
        data = bytes(len(data)) if fault.garbage else data + bytes(fault.extra)
        if not start or fault.no_ranges:
            self._answer(200, data, fault, {})
        elif start >= len(data):
            self.send_error(416)
        else:
            start += fault.shift
            said = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[start:], fault, {"Content-Range": said})

    def _answer(self, status: int, body: bytes, fault: Fault, headers: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + fault.lie))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault.lie < 0:
            body = body[: fault.lie]
        self._send(body[: fault.cut], fault.bytes_per_s)
        time.sleep(fault.stall_s)
        if fault.cut is not None or fault.lie:
            self.close_connection = True

    def _send(self, body: bytes, bytes_per_s: float) -> None:
        piece = max(1, int(bytes_per_s / 50)) if bytes_per_s else 1 << 16
        for start in range(0, len(body), piece):
            try:
                self.wfile.write(body[start : start + piece])
            except OSError:
                self.close_connection = True
                return
            self.state.sent[self.path.lstrip("/")] += len(body[start : start + piece])
            time.sleep(0.02 if bytes_per_s else 0)

    def log_message(self, format: str, *args: Any) -> None:
        pass
