"""Versions with known holes, where this project is concerned; floors are the first mended ones."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from launch.preflight.findings import Findings


class Floor(NamedTuple):
    """The first version without a hole, and the holes below it."""

    version: str
    holes: str
    remedy: str = "install a newer one (requirements.lock has what was tested)"


FLOORS = {
    "torch": Floor("2.10", "CVE-2025-32434, CVE-2026-24747 (weights_only can be got round)"),
    # PYSEC-2024-109 and Tenable's plugin 208297 (DeepSpeed < 0.15.1 Command Injection).
    "deepspeed": Floor("0.15.1", "CVE-2024-43497 (runs commands of others)"),
    "mlflow": Floor(
        "3.11.0",
        "CVE-2025-11201, CVE-2026-0545, CVE-2026-2614, CVE-2026-2652, CVE-2026-4137 (server and "
        "downloads)",
    ),
    "pillow": Floor("12.3.0", "CVE-2026-25990, CVE-2026-59199 (writes outside of its memory)"),
}
TARFILE = "CVE-2024-12718, CVE-2025-4138, CVE-2025-4330, CVE-2025-4517 (tarfile's extraction)"
PYTHON = {(3, 9): 23, (3, 10): 18, (3, 11): 13, (3, 12): 11, (3, 13): 4}
"""Of each minor version the first patch with a mended tarfile; later minor ones began with it."""


def check_versions(versions: Mapping[str, str], host: str, found: Findings) -> None:
    """Name what has a known hole; `versions` are those of one host, Python's own among them."""
    before = len(found.warnings)
    for name, floor in FLOORS.items():
        version = versions.get(name, "")
        if version and _numbers(version) < _numbers(floor.version):
            found.warnings.append(
                f"version  {name} {version} on {host} is older than {floor.version}: "
                f"{floor.holes}; {floor.remedy}"
            )
    major, minor, patch = (*_numbers(versions.get("python", "99.0.0")), 0, 0)[:3]
    if patch < PYTHON.get((major, minor), 0):
        found.warnings.append(
            f"version  python {versions['python']} on {host} is older than "
            f"{major}.{minor}.{PYTHON[major, minor]}: {TARFILE}; nothing here extracts archives, "
            "other programs of this environment may: install a newer patch"
        )
    if len(found.warnings) == before:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.good.append(f"version  {named}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (2, 10, 0) of `2.10.0+cu128`."""
    parts = re.sub(r"[^\d.].*", "", version).split(".")
    return tuple(int(part) for part in parts if part)
