"""Nothing in the project ties it to one machine, one package index or one host."""

import re
from pathlib import Path

import pytest

HOSTS = {
    "arxiv.org",
    "doi.org",
    "www.w3.org",
    "github.com",
    "www.apache.org",
    "image-net.org",
    "www.image-net.org",
    "ai.stanford.edu",
    "data.vision.ee.ethz.ch",
    "www.cs.toronto.edu",
    "www.robots.ox.ac.uk",
    "localhost",
    "127.0.0.1",
}
"""Hosts that may stand in a URL: papers, sources, image sets, licences, SVG, this machine."""

URL = re.compile(r"https?://(?:[^\s/@\"'<>]*@)?([\w.-]*\w)")
INDEX_OPTION = re.compile(r"--?(?:extra-)?index" + r"-url|find" + r"-links|index" + r"_url", re.I)
REGISTRY = re.compile(
    r"\b(?:(?:files\.)?pythonhosted|pypi|npmjs|nvcr|ghcr|quay|docker|conda|anaconda)"
    r"\.(?:org|io|com)\b"
)
HOME = re.compile(r"(?<![\w.$}])/(?:home|Users)/[a-z]\w*/|(?<![\w.$}])/root/\.")
RESERVED = (".invalid", ".example", ".test", "example.com", "example.org", "example.net")


def ties(name: str, text: str, checkout: Path) -> list[str]:
    """Name the lines of a text file that hold only on one machine."""
    here = _places(checkout)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for reason in _reasons(line, here):
            found.append(f"{name}:{number}: {reason}: {line.strip()[:80]}")
    return found


def _reasons(line: str, here: re.Pattern[str]) -> list[str]:
    reasons = []
    if here.search(line) or HOME.search(line):
        reasons.append("a path of one machine")
    if INDEX_OPTION.search(line) or REGISTRY.search(line):
        reasons.append("a package index")
    for host in URL.findall(line):
        if host not in HOSTS and not host.endswith(RESERVED) and "." in host:
            reasons.append(f"host {host} is not among the known ones")
    return reasons


def _places(checkout: Path) -> re.Pattern[str]:
    """The checkout's own folder; the folder around it too, unless that is a common one."""
    common = {
        "/",
        "/tmp",
        "/home",
        "/root",
        "/srv",
        "/opt",
        "/mnt",
        "/data",
        "/usr/src",
        "/var/tmp",
    }
    places = [str(checkout)] + [str(p) for p in [checkout.parent] if str(p) not in common]
    return re.compile("|".join(rf"(?<![\w.]){re.escape(place)}/" for place in places))


def test_no_file_names_a_machine_or_a_package_index(repo: Path, files: list[Path]) -> None:
    found = []
    for path in files:
        text = (repo / path).read_bytes().decode("utf-8", errors="replace")
        found += ties(path.as_posix(), text, repo)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "cd /build/place/checkout/pipeline",
        "cd /build/place/neighbour",
        "path: /home/" + "ada/data",
        "pip install --index" + "-url=x torch",
        "see pypi" + ".org",
        "image: nvcr" + ".io/some/image",
        "https:" + "//files.host-of-ours.net/x",
        "https:" + "//user:word@host-of-ours.net/x",
    ],
)
def test_a_tie_to_one_machine_is_found(line: str) -> None:
    assert ties("README.md", line, Path("/build/place/checkout"))


@pytest.mark.parametrize(
    "line",
    [
        "see https://arxiv.org/abs/2104.00298",
        "the server at http://127.0.0.1:5000 or http://tracking.example:5000",
        "scratch=/home/$USER/scratch",
        "a folder like /data/shards or rebuild/place/",
    ],
)
def test_an_ordinary_line_passes(line: str) -> None:
    assert not ties("README.md", line, Path("/build/place/checkout"))
