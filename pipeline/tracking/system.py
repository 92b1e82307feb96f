"""The machine's own figures (CPU, memory, GPUs, disk), sampled by a thread into the spool.

Read from /proc and from nvidia-smi where there is one, so neither MLflow nor CUDA is touched.
"""

import os
import shutil
import subprocess
import threading
from pathlib import Path

from pipeline.tracking.spool import Spool

GB = 1e9
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GPU_FIELDS = "index,utilization.gpu,memory.used,power.draw,temperature.gpu"


class SystemSampler:
    """Records `system/...` metrics every `every_s` seconds (0: never) at the spool's last step."""

    def __init__(self, spool: Spool, every_s: float) -> None:
        self._spool, self._every_s = spool, every_s
        self._cpu = CpuUse()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system", daemon=True)
        if every_s > 0:
            self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            values = {**self._cpu.sample(), **memory(), **disk(self._spool.folder), **gpus()}
            if values:
                names = {f"system/{name}": value for name, value in values.items()}
                self._spool.metrics(self._spool.last_step, names)


class CpuUse:
    """Share of all cores that was busy since the last sample, in percent."""

    def __init__(self) -> None:
        self._last = _cpu_ticks()

    def sample(self) -> dict[str, float]:
        """Return {'cpu_percent': ...}; empty where /proc is missing."""
        now = _cpu_ticks()
        busy, total = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return {"cpu_percent": 100.0 * busy / total} if total > 0 else {}


def memory() -> dict[str, float]:
    """Return used memory of the machine and of this process, in GB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
    used_bytes = (kib["MemTotal"] - kib.get("MemAvailable", kib["MemFree"])) * 1024
    return {"memory_gb": used_bytes / GB, "process_memory_gb": pages * _PAGE_BYTES / GB}


def disk(folder: Path) -> dict[str, float]:
    """Return the free space where the run writes, in GB."""
    try:
        return {"disk_free_gb": shutil.disk_usage(folder).free / GB}
    except OSError:
        return {}


def gpus() -> dict[str, float]:
    """Return each visible GPU's use (percent), memory (GB), power (W) and temperature (C)."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_gpus(done.stdout) if done.returncode == 0 else {}


def parse_gpus(text: str) -> dict[str, float]:
    """Read nvidia-smi's CSV lines; what a card does not tell ('[N/A]') is left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        index, *values = (part.strip() for part in line.split(","))
        for name, value in zip(("percent", "memory_gb", "power_w", "temp_c"), values, strict=False):
            try:
                number = float(value)
            except ValueError:
                continue
            found[f"gpu{index}_{name}"] = number * 2**20 / GB if name == "memory_gb" else number
    return found


def _cpu_ticks() -> tuple[int, int]:
    """Return (busy, all) clock ticks of all cores since boot."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return (0, 0)
    ticks = [int(part) for part in line.split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle, sum(ticks))
