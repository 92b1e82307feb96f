"""Which train images are held out: by fraction, by number per class, or the first by name.

Exact and seeded: an image's rank is a hash of its name, so that a new image moves the others
little. Whatever the rule, a class with images keeps at least one of them for train.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_prep.options import Hold
from data_prep.population import EVAL
from pipeline.spec import Misuse


def in_order(holdouts: Mapping[str, Hold]) -> list[tuple[str, Hold]]:
    """Return the holdouts in the order in which they take: eval, then by name."""
    return sorted(holdouts.items(), key=lambda item: (item[0] != EVAL, item[0]))


def check_holdouts(holdouts: Mapping[str, Hold], splits: Sequence[str]) -> None:
    """Refuse to hold out a split that the sources have themselves; `splits` are theirs."""
    for split in holdouts:
        if split in splits:
            raise Misuse(
                f"the {split} split is asked for twice (it is in the sources, and --holdout takes "
                "it from train): keep one; --split train=FOLDER leaves other folders out"
            )


def per_class(hold: Hold, counts: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return how many images of each class a rule takes.

    A fraction takes round(fraction * N) in all, from each class its share within one image;
    largest remainders settle the rounding (ties: lower class).

    Args:
        hold: the rule.
        counts: (C,) images of each class, of which a fraction is taken.
        left: (C,) of those that no other holdout took; one of each class stays.
    """
    most = np.maximum(left - 1, 0)
    if hold.fraction is None:
        return np.minimum(hold.count or hold.first or 0, most)
    quota = counts * hold.fraction
    take = np.minimum(np.floor(quota + 1e-9).astype(np.int64), most)
    missing = round(hold.fraction * int(counts.sum())) - int(take.sum())
    by_remainder = np.argsort(take - quota, kind="stable")
    room = by_remainder[take[by_remainder] < most[by_remainder]]
    take[room[: max(missing, 0)]] += 1
    return take


def lowest(classes: np.ndarray, rank: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Choose the `take[c]` images of lowest rank in each class c.

    Args:
        classes: (N,) class of each image.
        rank: (N,) uint64.
        take: (C,) of each class.

    Returns:
        (n,) positions, by class and rank.
    """
    return _heads(np.lexsort((rank, classes)), classes, take)


def first_by_name(classes: np.ndarray, name: Callable[[int], str], take: np.ndarray) -> np.ndarray:
    """Choose the `take[c]` images of each class c that come first by name.

    `name` gives that of a position; the names of one class are in memory at a time.
    """
    order = np.argsort(classes, kind="stable")
    starts = _starts(classes, len(take))
    for number in np.flatnonzero(take).tolist():
        its = order[starts[number] : starts[number + 1]]
        its[:] = sorted(its.tolist(), key=name)
    return _heads(order, classes, take)


def _heads(order: np.ndarray, classes: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Return the first `take[c]` of each class, of positions that are in order of class."""
    starts = _starts(classes, len(take))
    counts = np.minimum(take, np.diff(starts))
    chosen = [
        order[s : s + n] for s, n in zip(starts[:-1].tolist(), counts.tolist(), strict=True) if n
    ]
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def _starts(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=num_classes))])
