"""What the ImageNet layouts share: class tars by their WordNet id, and words about the whole."""

import re
import sys
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from data_prep.tar import printable
from pipeline.spec import Misuse

if TYPE_CHECKING:  # the table of layouts imports this module
    from data_prep.layouts import LayoutOptions

SYNSET = re.compile(r"n[0-9]{8}")
PAGE = "https://image-net.org/download-images.php"
_CLASS = re.compile(r"(n[0-9]{8})(?:\.tar|\.tgz|\.tar\.gz)?", re.IGNORECASE)
_IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".gif", ".bmp", ".webp")
_MAX_NAMED = 5


class Home(NamedTuple):
    """A folder or tar of a class: the class, and what lies around it (empty: the source itself)."""

    synset: str
    around: str


@lru_cache(maxsize=1024)
def home_of(folder: str) -> Home | None:
    """Return the class whose tar or folder a folder is or lies in; the outermost one decides.

    Cached, as thousands of files follow each other in one folder.
    """
    parts = folder.split("/")
    for depth, part in enumerate(parts):
        found = _CLASS.fullmatch(part)
        if found:
            return Home(found[1].lower(), "/".join(parts[:depth]))
    return None


def is_image_name(file: str) -> bool:
    """Tell by its suffix whether a file without a class should have one."""
    return file.lower().endswith(_IMAGE_SUFFIXES)


def refuse_options(options: "LayoutOptions", layout: str) -> None:
    """Refuse options that would have no effect on a release with its own structure."""
    given = {
        "--split": options.splits is not None,
        "--eval-source": bool(options.eval_prefix),
        "--eval-labels": options.eval_labels is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise Misuse(
                f"{option}: --layout {layout} finds its splits itself; put all archives into "
                f"SOURCE and leave {option} away, or use --layout folders"
            )


def name_some(names: Collection[str]) -> str:
    """Return the first names in sorted order, and how many there are more."""
    some = ", ".join(sorted(names)[:_MAX_NAMED])
    more = len(names) - _MAX_NAMED
    return f"{some} and {more:,} more" if more > 0 else some


def shown(around: str) -> str:
    """Return what to call the folder or archive around classes."""
    return printable(around) if around else "the source itself"


def say(text: str) -> None:
    """Tell a person what is unusual about a source, but no mistake."""
    print(text, file=sys.stderr)
