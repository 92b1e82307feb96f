"""TensorFlow's checkpoint format: what TensorFlow wrote is read, what is damaged is refused."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import tf_table
from pipeline.models.tf_bundle import open_bundle
from pipeline.models.tf_table import BrokenCheckpoint
from pipeline.spec import Failure, Misuse
from tests.unit.models import bundles

FILES = Path(__file__).parent / "files"
RNG = np.random.default_rng(0)
ARRAYS = {
    "a/kernel": RNG.standard_normal((3, 3, 2, 4), dtype=np.float32),
    "a/kernel/Slot": np.zeros((0, 5), dtype=np.float32),
    "b": RNG.standard_normal(7).astype(np.float64),
    "half": np.arange(5, dtype=np.float16),
    "step": np.array(12, dtype=np.int64),
}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "model.ckpt-12", ARRAYS, num_shards=2)


def change(path: Path, fields: dict[int, bundles.Wire]) -> None:
    """Write an index of one tensor, `w`, with some fields of its entry changed."""
    data = np.ones(4, dtype=np.float32).tobytes()
    entries = {b"": bundles.message({1: 1}), b"w": bundles.entry(1, (4,), data, changed=fields)}
    Path(f"{path}.index").write_bytes(bundles.table(entries))
    Path(f"{path}.data-00000-of-00001").write_bytes(data)


def test_a_checkpoint_of_tensorflow_is_read_to_the_last_variable() -> None:
    """`files/write_checkpoint.py` says how it was made."""
    bundle = open_bundle(FILES / "micro")
    assert len(bundle.entries) == 265
    assert bundle.entries["efficientnetv2-micro/stem/conv2d/kernel"].shape == (3, 3, 3, 8)
    assert bundle.read("global_step") == 3
    values = [bundle.read(name) for name in bundle.entries]
    assert all(np.isfinite(value).all() for value in values)
    start = bundle.read("efficientnetv2-micro/blocks_1/tpu_batch_normalization_1/gamma/RMSProp")
    assert (start > 0).all()


def test_names_shapes_and_values_come_back_from_any_number_of_shards(prefix: Path) -> None:
    bundle = open_bundle(prefix)
    assert bundle.entries.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = bundle.read(name)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert (found == array).all()


def test_many_names_over_many_blocks_come_back_in_order(tmp_path: Path) -> None:
    arrays = {f"net/blocks_{i}/x": np.full(1, i, dtype=np.float32) for i in range(500)}
    bundle = open_bundle(bundles.write(tmp_path / "m", arrays))
    assert list(bundle.entries) == sorted(arrays)
    assert bundle.read("net/blocks_123/x") == 123


def test_a_prefix_an_index_and_a_folder_name_the_same_checkpoint(prefix: Path) -> None:
    folder = prefix.parent
    assert open_bundle(Path(f"{prefix}.index")).prefix == prefix
    assert open_bundle(folder).prefix == prefix
    bundles.write(folder / "model.ckpt-9", ARRAYS)
    with pytest.raises(Misuse, match=r"holds 2 TensorFlow checkpoints \(model.ckpt-12, model.ck"):
        open_bundle(folder)
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-9"\nall_model_checkpoint_paths: "model.ckpt-12"\n'
    )
    assert open_bundle(folder).prefix == folder / "model.ckpt-9"
    (folder / "checkpoint").write_text('model_checkpoint_path: "/etc/other"\n')
    with pytest.raises(Misuse, match="holds 2"):
        open_bundle(folder)


def test_what_is_not_there_is_named_with_the_remedy(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"none.index: cannot be read .*archive is unpacked first"):
        open_bundle(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Misuse, match="empty: holds 0 TensorFlow checkpoints"):
        open_bundle(tmp_path / "empty")
    Path(f"{prefix}.data-00001-of-00002").unlink()
    bundle = open_bundle(prefix)
    with pytest.raises(Misuse, match=r"data-00001-of-00002: cannot be read .* side by side"):
        for name in ARRAYS:
            bundle.read(name)


def test_every_changed_byte_of_the_index_is_noticed(prefix: Path) -> None:
    path = Path(f"{prefix}.index")
    data, right = path.read_bytes(), open_bundle(prefix).entries
    footer = len(data) - 48
    unnoticed = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            found = open_bundle(prefix)
        except (BrokenCheckpoint, Misuse):
            continue
        assert found.entries == right
        unnoticed += place >= footer
        assert place >= footer
    # The footer holds two addresses in room for the longest ones; the rest of it means nothing.
    assert 20 < unnoticed < 40


def test_an_index_cut_anywhere_is_refused(prefix: Path) -> None:
    path = Path(f"{prefix}.index")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(BrokenCheckpoint, match="no index of a TensorFlow checkpoint"):
            open_bundle(prefix)


def test_changed_and_missing_bytes_of_a_tensor_are_noticed(prefix: Path) -> None:
    shard = Path(f"{prefix}.data-00000-of-00002")
    data = shard.read_bytes()
    shard.write_bytes(b"\xff" + data[1:])
    with pytest.raises(BrokenCheckpoint, match="checksum of tensor 'a/kernel' is wrong; fetch"):
        open_bundle(prefix).read("a/kernel")
    shard.write_bytes(data[:5])
    with pytest.raises(BrokenCheckpoint, match="ends before tensor 'a/kernel' does"):
        open_bundle(prefix).read("a/kernel")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({5: 2**62}, "is said to have 4,611,686,018,427,387,904 bytes"),
        ({4: 2**63}, "ends before tensor 'w' does"),
        ({2: bundles.message({2: [bundles.message({1: 2**62})]})}, "no possible shape"),
        ({2: bundles.message({2: [bundles.message({1: 1})] * 9})}, "no possible shape"),
        ({2: bundles.message({2: [bundles.message({1: 2**39})] * 8})}, "is said to have 16"),
        ({3: 7}, "lies in a shard that is not there"),
        ({2: b"\x12\x7f"}, "is cut off"),
    ],
)
def test_an_entry_that_lies_allocates_nothing(
    tmp_path: Path, fields: dict[int, bundles.Wire], words: str
) -> None:
    change(tmp_path / "m", fields)
    with pytest.raises(BrokenCheckpoint, match=words):
        open_bundle(tmp_path / "m").read("w")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({7: b""}, "variable 'w' is partitioned; save the checkpoint with whole ones"),
        ({1: 7}, r"'w' is of TensorFlow's type 7; read are float32 \(1\)"),
    ],
)
def test_what_is_never_a_weight_is_refused_with_the_remedy(
    tmp_path: Path, fields: dict[int, bundles.Wire], words: str
) -> None:
    change(tmp_path / "m", fields)
    with pytest.raises(Misuse, match=words):
        open_bundle(tmp_path / "m").read("w")


@pytest.mark.parametrize(
    ("header", "error", "words"),
    [
        ({1: 0}, BrokenCheckpoint, "lie in 0 shards"),
        ({1: 10**9}, BrokenCheckpoint, "lie in 1000000000 shards"),
        ({1: b"x"}, BrokenCheckpoint, "lie in b'x' shards"),
        ({1: 1, 2: 1}, Misuse, "big-endian"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    tmp_path: Path, header: dict[int, bundles.Wire], error: type[Exception], words: str
) -> None:
    Path(tmp_path / "m.index").write_bytes(bundles.table({b"": bundles.message(header)}))
    with pytest.raises(error, match=words):
        open_bundle(tmp_path / "m")


def test_names_out_of_order_or_twice_are_refused() -> None:
    with pytest.raises(BrokenCheckpoint, match="out of order"):
        tf_table.read_table(bundles.table({b"b": b"", b"a": b""}), "x")
    twice = bundles.table({b"a": b"1", b"a ": b"2"}, per_block=1).replace(b"a ", b"a")
    with pytest.raises(BrokenCheckpoint):
        tf_table.read_table(twice, "x")
    with pytest.raises(BrokenCheckpoint, match="no text"):
        tf_table.read_table(bundles.table({b"\xff\xfe": b""}), "x")


def test_a_block_named_again_and_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a small index could unfold into any number of names."""
    honest = bundles.block([(b"a", b"1")])
    body = honest + b"\0"
    body += struct.pack("<I", bundles.masked(body))
    handle = bundles.number(0) + bundles.number(len(honest))
    index = bundles.block([(bytes([i]), handle) for i in range(100)])
    tail = index + b"\0"
    tail += struct.pack("<I", bundles.masked(tail))
    footer = handle + bundles.number(len(body)) + bundles.number(len(index))
    data = body + tail + footer.ljust(40, b"\0") + bundles.MAGIC
    with pytest.raises(BrokenCheckpoint, match="a block of it is said to lie at 0"):
        tf_table.read_table(data, "x")
    monkeypatch.setattr(tf_table, "MAX_ENTRIES", 3)
    with pytest.raises(BrokenCheckpoint, match="or more than 3"):
        tf_table.read_table(bundles.table({b"a%d" % i: b"" for i in range(4)}), "x")


def test_long_names_and_compressed_blocks_are_refused() -> None:
    with pytest.raises(BrokenCheckpoint, match="does not fit into its block"):
        tf_table.read_table(bundles.table({b"x" * 2000: b""}), "x")
    with pytest.raises(Failure, match=r"is compressed, .* newer TensorFlow"):
        tf_table.read_table(bundles.table({b"a": b"1"}, kind=1), "x")


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=120), restarts=st.integers(0, 3))
def test_a_block_of_anything_is_read_or_refused(content: bytes, restarts: int) -> None:
    """Checksums keep accidents out, not people: here they are right, and the rest is not."""
    content += struct.pack(f"<{restarts + 1}I", *[0] * restarts, restarts)
    try:
        found = tf_table.read_table(bundles.framed([(b"z", content)]), "x")
    except BrokenCheckpoint:
        return
    assert sum(len(value) for value in found.values()) <= len(content)


@settings(max_examples=300, deadline=None)
@given(value=st.binary(max_size=80))
def test_an_entry_of_anything_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: bytes
) -> None:
    prefix = tmp_path_factory.getbasetemp() / "anything"
    Path(f"{prefix}.data-00000-of-00001").write_bytes(b"1234")
    entries = {b"": bundles.message({1: 1}), b"w": value}
    Path(f"{prefix}.index").write_bytes(bundles.table(entries))
    with contextlib.suppress(BrokenCheckpoint, Misuse):
        assert open_bundle(prefix).read("w").nbytes <= 4
