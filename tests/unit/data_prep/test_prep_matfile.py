"""MATLAB's label files: what scipy writes is read the same, and nothing hostile gets through."""

import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.layouts import matfile
from data_prep.layouts.matfile import MatFile
from pipeline.spec import Misuse

ANNOTATIONS = np.array(
    [[(1, "00001.jpg", 14.0), (196, "00002.jpg", 3.0)]],
    dtype=[("bbox_x1", object), ("fname", object), ("class", object)],
)
VARIABLES = {
    "labels": np.array([[77, 77, 1]], np.uint8),
    "trnid": np.array([[6765, 2]], np.float64),
    "class_names": np.array([["AM General Hummer SUV 2000", "Audi"]], object),
    "annotations": ANNOTATIONS,
}


def _save(variables: dict[str, object], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


def _element(kind: int, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 8)
    return struct.pack("<II", kind, len(data)) + (data if kind == 15 else padded)


def _header(order: bytes = b"IM", version: int = 0x0100) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", version) + order


def _matrix(cls: int, dims: tuple[int, ...], *parts: bytes, flags: int = 0) -> bytes:
    head = _element(6, struct.pack("<II", cls | flags, 0))
    shape = _element(5, struct.pack(f"<{len(dims)}i", *dims))
    return _element(14, head + shape + _element(1, b"x") + b"".join(parts))


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read(compressed: bool) -> None:
    mat = MatFile(_save(VARIABLES, compressed), "x.mat")
    assert mat.integers("labels") == [77, 77, 1]
    assert mat.integers("trnid") == [6765, 2]
    assert mat.texts("class_names") == ["AM General Hummer SUV 2000", "Audi"]
    assert mat.text_column("annotations", "fname") == ["00001.jpg", "00002.jpg"]
    assert mat.integer_column("annotations", "class") == [14, 3]
    assert "labels" in mat and "setid" not in mat


def test_agrees_with_scipy_on_every_type() -> None:
    dtypes = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    arrays = {f"a_{name}": np.arange(6).astype(name).reshape(2, 3) for name in dtypes}
    data = _save({**arrays, "empty": np.zeros((0, 0)), "text": "café", "yes": np.array([[True]])})
    mat, true = MatFile(data, "x.mat"), scipy.io.loadmat(io.BytesIO(data))
    for name in arrays:
        assert mat.integers(name) == true[name].ravel(order="F").tolist()
    assert mat.variables["text"] == "café"
    assert mat.integers("yes") == [1]
    assert mat.integers("empty") == []


def test_big_endian() -> None:
    data = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    parts = struct.pack(">IIII", 6, 8, 9, 0) + struct.pack(">IIii", 5, 8, 1, 2)
    parts += struct.pack(">HH4s", 1, 1, b"x") + struct.pack(">HHHH", 4, 3, 300, 2)
    mat = MatFile(data + struct.pack(">II", 14, len(parts)) + parts, "x.mat")
    assert mat.integers("x") == [300, 2]


def test_what_no_label_file_has_is_passed_over() -> None:
    import scipy.sparse

    odd = {"s": scipy.sparse.eye(3).tocsc(), "c": np.array([1j]), "labels": np.array([1])}
    mat = MatFile(_save(odd), "x.mat")
    assert mat.integers("labels") == [1]
    with pytest.raises(Misuse, match="s is no array of numbers"):
        mat.integers("s")


def test_wrong_questions_name_what_is_there() -> None:
    mat = MatFile(_save({**VARIABLES, "half": np.array([0.5]), "inf": np.array([np.inf])}), "x.mat")
    for ask, problem in (
        (lambda: mat.integers("nope"), "no 'nope', only annotations"),
        (lambda: mat.integers("half"), r"half has 0\.5, expected a whole number"),
        (lambda: mat.integers("inf"), "whole number"),
        (lambda: mat.texts("labels"), "no list of strings"),
        (lambda: mat.integer_column("labels", "class"), "no field 'class', but no fields"),
        (lambda: mat.integer_column("annotations", "cls"), "but bbox_x1, fname, class"),
        (lambda: mat.integer_column("annotations", "fname"), "no array of numbers"),
        (lambda: mat.text_column("annotations", "class"), "no list of strings"),
    ):
        with pytest.raises(Misuse, match=problem):
            ask()


NUMBERS = _element(9, struct.pack("<d", 1))
DAMAGED = {
    "nothing": (b"", "does not start"),
    "a page": (b"<html>" * 100, "does not start"),
    "version 7.3": (_header(version=0x0200) + b"\x89HDF", "version 7.3"),
    "a cut tag": (_header() + b"\x0e\0\0\0", "part is missing"),
    "a claimed size": (_header() + struct.pack("<II", 14, 1 << 31), "claims 2,147,483,648 bytes"),
    "more in a tag than it holds": (_header() + struct.pack("<II", 5 << 16 | 14, 0), "in the tag"),
    "a shape of more numbers": (_header() + _matrix(6, (1, 2), NUMBERS), "has 1 numbers"),
    "a huge cell": (_header() + _matrix(1, (1 << 30, 1 << 30)), "arrays in"),
    "a huge struct": (
        _header()
        + _matrix(2, (1 << 30, 8), _element(5, struct.pack("<i", 4)), _element(1, b"abc\0")),
        "arrays in",
    ),
    "a negative shape": (_header() + _matrix(6, (-1, -1), NUMBERS), "shape"),
    "a shape of one side": (_header() + _matrix(6, (1,), NUMBERS), "shape"),
    "names of no length": (
        _header() + _matrix(2, (1, 1), _element(5, struct.pack("<i", 0)), _element(1, b"ab")),
        "have the length 0",
    ),
    "text as numbers": (_header() + _matrix(6, (1, 1), _element(16, b"abc")), "type 16"),
    "half a number": (_header() + _matrix(6, (1, 1), _element(9, b"abc")), "3 bytes of numbers"),
    "text that is none": (_header() + _matrix(4, (1, 3), _element(16, b"\xff\xff\xff")), "utf-8"),
    "a broken stream": (_header() + _element(15, b"\x78\x9cabcdef"), "decompress"),
    "a cut stream": (_header() + _element(15, zlib.compress(NUMBERS)[:-4]), "ends early"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_refused(what: str) -> None:
    data, problem = DAMAGED[what]
    with pytest.raises(Misuse, match=problem) as error:
        MatFile(data, "dir/labels.mat")
    assert str(error.value).startswith("dir/labels.mat: ")


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfile, "MAX_INFLATED_BYTES", 1 << 20)
    one = _element(15, zlib.compress(_matrix(6, (1, 90_000), _element(9, bytes(720_000)))))
    assert len(MatFile(_header() + one, "x.mat").integers("x")) == 90_000
    with pytest.raises(Misuse, match="grows beyond 1 MB"):
        MatFile(_header() + one + one, "x.mat")
    with pytest.raises(Misuse, match="larger than 1 MB"):
        MatFile(_header() + bytes(1 << 20), "x.mat")


def test_deep_nesting_is_refused() -> None:
    nested = _matrix(6, (1, 1), NUMBERS)
    for _ in range(2000):
        nested = _matrix(1, (1, 1), nested)
    with pytest.raises(Misuse, match="deep"):
        MatFile(_header() + nested, "x.mat")


def test_a_struct_without_fields_takes_no_memory() -> None:
    data = _header() + _matrix(2, (1 << 30, 1 << 30), _element(5, struct.pack("<i", 1)) + NUMBERS)
    with pytest.raises(Misuse):
        MatFile(data, "x.mat").integer_column("x", "class")


WHOLE = _save(VARIABLES)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(124, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_a_mutated_file_is_read_or_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in flips:
        data[at] = value
    try:
        mat = MatFile(bytes(data), "x.mat")
        mat.integers("labels")
        mat.texts("class_names")
        mat.integer_column("annotations", "class")
    except Misuse as error:
        assert str(error).startswith("x.mat: ")


def test_a_cut_file_is_refused() -> None:
    with pytest.raises(Misuse, match="claims .* bytes"):
        MatFile(WHOLE[: len(WHOLE) // 2], "x.mat")
