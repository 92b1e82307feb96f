"""Limits that a site may set in `slurm/site.env`, and what holds without.

A supervisor checks them all before a rank starts: a wrong one would else be met when ranks save.
"""

from collections.abc import Mapping

from pipeline.spec import Misuse

LIMITS_S = {"SAVE_S": 150.0, "ROLL_CALL_S": 180.0, "START_CHECKS_S": 60.0, "NETWORK_TEST_S": 45.0}
"""Ranks get SAVE_S to save: SLURM's signal comes 180 s before it kills (`--signal`). A thousand
Pythons from one network file system may take a minute to start, so ROLL_CALL_S is longer than what
all checks at the start may take otherwise."""
LEAST_WORLD = 0.5
"""A world of less than this part of the whole is too slow: other nodes are asked for."""


def limit_s(name: str, env: Mapping[str, str]) -> float:
    """Return a limit in seconds, of the environment or the default.

    Raises:
        Misuse: the environment has something else there.
    """
    text = env.get(name) or str(LIMITS_S[name])
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise Misuse(
            f"environment: {name} is '{text}': expected seconds, as {LIMITS_S[name]:g}; change it "
            "in slurm/site.env"
        )
    return seconds


def least_world(env: Mapping[str, str]) -> float:
    """Return the part of the ranks that may go on alone; 1: the world, and so the bits, stay.

    Raises:
        Misuse: the environment has something else there.
    """
    text = env.get("LEAST_WORLD") or str(LEAST_WORLD)
    try:
        part = float(text)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise Misuse(
            f"environment: LEAST_WORLD is '{text}': expected a part of the ranks above 0 and up to "
            f"1, as {LEAST_WORLD:g}; change it in slurm/site.env"
        )
    return part


def check_limits(env: Mapping[str, str]) -> None:
    """Refuse an environment in which a limit is no number of seconds, or no part.

    Raises:
        Misuse: as `limit_s` and `least_world`.
    """
    for name in LIMITS_S:
        limit_s(name, env)
    least_world(env)
