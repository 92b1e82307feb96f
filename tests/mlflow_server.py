"""A real MLflow server on sqlite that tests and storms kill, stop and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server; the same store and address each time it is started."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.database = f"sqlite:///{folder}/server.db"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            # all addresses, so that a request by one that is not allowed can be tried
            *("--host", "0.0.0.0", "--port", str(port)),
            *("--allowed-hosts", f"127.0.0.1:{port}"),
            *("--backend-store-uri", self.database),
            *("--artifacts-destination", str(folder / "server-artifacts")),
        ]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def serve(self) -> None:
        """Start it and wait until it answers."""
        self.start()
        self.wait()

    def wait(self, timeout_s: float = 120) -> None:
        """Wait until it answers.

        Raises:
            TimeoutError: with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"no MLflow server: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Have it stand still, with its connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on, or start it where it was killed."""
        if self._process is None:
            self.start()
        else:
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a warning."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
