"""CIFAR's pickles are read as data: what Python 2 and 3 write is understood, nothing else runs."""

import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.layouts import pickled
from data_prep.layouts.pickled import Pickled
from pipeline.spec import Misuse

PIXELS = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
FIELDS = {"data": PIXELS, "labels": [6, 9], "filenames": ["a_s_1.png", "b_s_2.png"]}

# Python 2's cPickle of a uint8 array of shape (2, 3072), as in data_batch_1 but for the counts.
ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
    b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", 6144)
)
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x06K\x09eU\x04dataq\x04"
    + ARRAY
    + PIXELS.tobytes()
    + b"tbU\x09filenamesq\x0c]q\x0d(U\x09a_s_1.pngq\x0eU\x09b_s_2.pngq\x0feu."
)


def _check(data: bytes) -> None:
    batch = Pickled(data, "data_batch_1")
    array = batch.array("data")
    assert array.shape == (2, 3072)
    assert data[array.start : array.start + 6144] == PIXELS.tobytes()
    assert batch.integers("labels") == [6, 9]
    assert batch.texts("filenames") == FIELDS["filenames"]


def test_python_2_batch() -> None:
    true = pickle.loads(PYTHON_2, encoding="latin1")
    assert true["labels"] == [6, 9] and (true["data"] == PIXELS).all()
    _check(PYTHON_2)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("is_bytes", [False, True])
def test_python_3_batch(protocol: int, is_bytes: bool) -> None:
    fields: dict[object, object] = {**FIELDS}
    if is_bytes:  # what a batch becomes that is loaded with encoding="bytes" and saved again
        names = [name.encode() for name in FIELDS["filenames"]]
        fields = {b"data": PIXELS, b"labels": [6, 9], b"filenames": names}
    _check(pickle.dumps(fields, protocol))


def test_optimised_pickle_has_another_memo() -> None:
    _check(pickletools.optimize(PYTHON_2))


def test_shared_values_come_from_the_memo() -> None:
    shared = [1, 2, 3]
    batch = Pickled(pickle.dumps({"a": shared, "b": shared, "c": "x"}, 2), "batch")
    assert batch.integers("b") == shared
    assert "c" in batch and "d" not in batch


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


HOSTILE = {
    "a command": b"\x80\x02" + _global("os", "system") + b"U\x04true\x85R.",
    "a command by protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a name split over the dot": b"\x80\x04\x8c\x0bnumpy.ndarr\x8c\x02ay\x93.",
    "an instance": b"\x80\x02(ios\nsystem\n.",
    "an object": b"\x80\x02(" + _global("os", "system") + b"U\x04trueo.",
    "a new object": b"\x80\x02" + _global("numpy", "ndarray") + b"K\x00\x85\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02U\x01aQ.",
    "a dtype of objects": PYTHON_2.replace(b"U\x02u1", b"U\x02O8"),
    "a dtype as an array's class": PYTHON_2.replace(b"cnumpy\nndarray", b"cnumpy\ndtype"),
    "a call of a list": b"\x80\x02]K\x00\x85R.",
    "a state for a dictionary": b"\x80\x02}}b.",
    "a state that is no tuple": b"\x80\x02" + ARRAY.split(b"(K\x01")[0] + b"}b.",
    "appending to a number": b"\x80\x02K\x01K\x02a.",
    "items of a list": b"\x80\x02]U\x01aK\x01s.",
    "a number as key": b"\x80\x02}K\x01K\x01s.",
    "an empty stack": b"\x80\x02a.",
    "no mark": b"\x80\x02}u.",
    "a lost mark": b"\x80\x02(\x85e.",
    "a missing memo": b"\x80\x02h\x09.",
    "text of protocol 0": b"(dp0\nS'data'\np1\nI1\ns.",
    "an old protocol": b"\x80\x01}.",
    "a new protocol": pickle.dumps({}, 5),
    "no dictionary": pickle.dumps([1], 2),
    "two values": b"\x80\x02}}.",
    "bytes after the end": PYTHON_2 + b"\0",
    "no end": PYTHON_2[:-1],
    "half of it": PYTHON_2[:3000],
    "nothing": b"",
    "a page": b"<!DOCTYPE html><html>",
    "an array by columns": PYTHON_2.replace(b"tb\x89T", b"tb\x88T"),
    "a shape of another size": PYTHON_2.replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86"),
    "a negative shape": PYTHON_2.replace(b"K\x02M\x00\x0c\x86", b"J\xff\xff\xff\xffK\x01\x86"),
    "a string size below zero": PYTHON_2.replace(
        b"T" + struct.pack("<i", 6144), b"T" + struct.pack("<i", -1)
    ),
    "a claimed size": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "an array of text": pickle.dumps(FIELDS, 2),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_else_is_refused(what: str) -> None:
    with pytest.raises(Misuse, match=r"^dir/batch: .*byte \d+: .*nothing in it was run") as error:
        Pickled(HOSTILE[what], "dir/batch")
    assert "get the archive again" in str(error.value)


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"touch {mark}".encode()
    size = bytes([len(command)])
    data = b"\x80\x02" + _global("posix", "system") + b"U" + size + command + b"\x85R."
    with pytest.raises(Misuse, match=r"names 'posix\.system'"):
        Pickled(data, "batch")
    assert not mark.exists()
    pickle.loads(data)  # so the pickle itself does what it should
    assert mark.exists()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1, "not a list"),
        (["a", 1], "not a list of strings"),
        ([["a"]], "not a list of strings"),
        ([None], "not a list of strings"),
    ],
)
def test_a_field_of_another_kind(value: object, problem: str) -> None:
    batch = Pickled(pickle.dumps({"names": value}, 2), "batch")
    with pytest.raises(Misuse, match=f"field 'names' is {problem}"):
        batch.texts("names")
    with pytest.raises(Misuse, match="field 'names' is not"):
        batch.integers("names")
    with pytest.raises(Misuse, match="field 'names' is not an array"):
        batch.array("names")
    with pytest.raises(Misuse, match="no field 'labels', only names"):
        batch.integers("labels")


def test_a_yes_is_no_label() -> None:
    batch = Pickled(pickle.dumps({"labels": [True, False], "n": True}, 2), "batch")
    with pytest.raises(Misuse, match="not a list of numbers"):
        batch.integers("labels")
    with pytest.raises(Misuse, match="not a number"):
        batch.integer("n")


def test_an_array_without_bytes_is_refused() -> None:
    data = b"\x80\x02}U\x04data" + ARRAY.split(b"(K\x01")[0] + b"s."
    with pytest.raises(Misuse, match="not an array"):
        Pickled(data, "batch").array("data")


def test_a_list_in_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(Misuse, match="not a list of numbers"):
        Pickled(pickle.dumps({"labels": loop}, 2), "batch").integers("labels")


def test_deep_lists_end() -> None:
    depth = 200_000
    with pytest.raises(Misuse, match="string is expected"):
        Pickled(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"]\x93.", "batch")


def test_opcodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAX_OPCODES", 100)
    with pytest.raises(Misuse, match="more than 100 opcodes"):
        Pickled(b"\x80\x02" + b"]" * 1000 + b".", "batch")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([PYTHON_2, pickle.dumps(FIELDS, 4), pickle.dumps(FIELDS, 3)]),
)
def test_a_damaged_batch_is_read_or_refused(flips: list[tuple[int, int]], whole: bytes) -> None:
    data = bytearray(whole)
    for at, value in flips:
        data[at if at < 120 else at - 160] = value  # the ends, where the opcodes are
    try:
        batch = Pickled(bytes(data), "batch")
        array = batch.array("data")
        batch.integers("labels")
        batch.texts("filenames")
    except Misuse:
        return
    count = int(np.prod(array.shape))
    assert 0 <= array.start <= array.start + count <= len(data)
