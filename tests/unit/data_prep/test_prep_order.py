"""Ranks: the same for the same name, seed and purpose, on every machine."""

from data_prep.order import rank_of, ranks


def test_a_rank_depends_on_seed_purpose_and_name_alone() -> None:
    # blake2b(b"cat/1.jpg", digest_size=8, key=b"3 order"), of Python's hashlib
    assert rank_of("cat/1.jpg", 3, "order") == 3007045209857135207
    names = ["cat/1.jpg", "cat/2.jpg", "caf\udce9.jpg"]
    assert ranks(names, 3, "order").tolist() == [rank_of(name, 3, "order") for name in names]
    assert ranks(iter([]), 3, "order").shape == (0,)
    assert len({rank_of("a", *key) for key in [(0, "order"), (1, "order"), (0, "holdout")]}) == 3
