"""What `show` says of a data set, and its page: complete, safe, the same every time."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import histograms
from data_prep.contact import write_page
from data_prep.index_tars import index_tars
from data_prep.show import amount, describe
from data_prep.verify import verify
from pipeline.data.manifest import Holdout, Notes, load_manifest, save_manifest
from pipeline.spec import Misuse
from tests.unit.data_prep.shard_sets import TAR, One, encode, small_set, write_set, write_tar

EVIL = "<script>alert('x')</script>\"><img src=http://x onerror=y>"


class _Page(HTMLParser):
    """Checks that tags nest, and keeps what a page loads, runs and says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + " "


def _page(folder: Path) -> _Page:
    write_page(folder, folder / "show.html")
    return _Page((folder / "show.html").read_text())


def test_the_table_says_how_a_set_came_about(tmp_path: Path) -> None:
    small_set(
        tmp_path,
        sources=("train.tar", "val.tar"),
        layout="imagenet1k",
        seed=7,
        holdouts={
            "eval": Holdout(rule="source"),
            "minival": Holdout(rule="count", value=25, seed=7),
            "val": Holdout(rule="first", value=50),
            "dev": Holdout(rule="fraction", value=0.01, seed=7),
        },
        clean={"decode": "full", "orientation": "keep", "min_side": 32},
        transcode={"kind": "resize", "short_px": 256, "quality": 90},
        bytes_before=40_000,
        repaired=Notes.of([("a.png", "PNG", "PNG re-encoded")]),
        rejected=Notes.of([(f"{n}.jpg", "truncated", "ends early") for n in range(12)]),
        dropped=Notes.of([("b.jpg", "duplicate", "same as a.jpg")]),
        noted=Notes.of([("c.jpg", "exif", "orientation 6")]),
        leaks=3,
        eval_twins=2,
        against=("abcdef0123456789:train,eval",),
    )
    table = describe(tmp_path)
    for text in (
        "layout imagenet1k, seed 7, from train.tar and val.tar",
        "eval: a source of its own; minival: 25 images of each class, drawn by seed 7; "
        "val: the first 50 images of each class by name; dev: 0.01 of the images of each class",
        "every image decoded, EXIF orientation ignored, pixels as stored, no side under 32 px",
        "short side 256 px, JPEG quality 90",
        "of 40 kB in the sources",
        "3 dropped from train because a held-out split has them; 2 in eval and in train at once",
        "compared with train,eval of data set abcdef012345",
        "rejected: 12 (12 truncated)",
        "... and 2 more, see rejects.jsonl",
        "dropped: 1 (1 duplicate)",
        "repaired: 1 (1 PNG)",
        "noted: 1 (1 exif)\n    c.jpg: orientation 6",
    ):
        assert text in table, text
    assert re.search(r"train +5 +2 +0\.\d+ +2 to 4, median 3", table)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"kind": "none"}, "none: good JPEGs are stored byte for byte"),
        ({"kind": "lossless", "restarts": True}, "optimised Huffman tables, with restart interva"),
        ({"kind": "lossless", "restarts": False}, "(same pixels, optimised Huffman tables)"),
    ],
)
def test_the_table_says_what_was_done_to_good_jpegs(
    tmp_path: Path, rules: dict[str, object], text: str
) -> None:
    small_set(tmp_path, transcode=rules)
    assert text in describe(tmp_path)


def test_tars_of_others_are_shown_as_such(tmp_path: Path) -> None:
    members = [("a.jpg", encode(1)), ("b.jpg", encode(2))]
    members += [(f"{key}.json", b'{"kind": "cat"}') for key in "ab"]
    write_tar(tmp_path / "t.tar", members)
    index_tars(tmp_path, {}, (), "theirs", 1, label_field="kind")
    table = describe(tmp_path)
    assert "(index), from tars made elsewhere" in table
    assert "headers only, labels from the field 'kind' of key.json" in table
    assert "webdataset itself would drop such samples" in table
    assert len(_page(tmp_path).images) == 2
    assert verify(tmp_path, 1)[1] == []


def test_amounts() -> None:
    amounts = {999: "999 bytes", 1000: "1 kB", 138_000_000_000: "138 GB", 1.31e12: "1.31 TB"}
    assert {count: amount(count) for count in amounts} == amounts  # type: ignore[arg-type]


def test_the_page_shows_images_with_their_labels(tmp_path: Path) -> None:
    manifest = small_set(tmp_path)
    page = _page(tmp_path)
    assert len(page.images) == manifest.splits["train"].num_samples + 2
    assert {image["alt"] for image in page.images} == {"cat", "dog", "dog, cat"}
    for image in page.images:
        kind, _, data = str(image["src"]).partition(";base64,")
        assert kind == "data:image/jpeg"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size in ((16, 12), (30, 12))
    for text in ("Images per class", "Short side", "12 px", "5 of 5 images, drawn by seed 0"):
        assert text in page.text
    assert verify(tmp_path, 1)[1] == [], "the page beside the shards is no foreign file"


def test_a_page_loads_and_runs_nothing_whatever_the_data_says(tmp_path: Path) -> None:
    small_set(tmp_path, repaired=Notes.of([(EVIL, EVIL, EVIL)]), sources=(EVIL,))
    manifest = load_manifest(tmp_path)
    labels = manifest.labels.model_copy(update={"display": (EVIL, "dog")})
    save_manifest(tmp_path, manifest.model_copy(update={"labels": labels, "name": EVIL}))
    page = _page(tmp_path)
    assert not page.tags & {"script", "link", "iframe", "object", "a", "form"}
    assert not {name for name in page.attributes if name.startswith("on") or name == "href"}
    assert all(str(image["src"]).startswith("data:") for image in page.images)
    assert EVIL in page.text
    assert "default-src 'none'" in (tmp_path / "show.html").read_text()


def test_the_same_set_gives_the_same_page_and_another_seed_other_images(tmp_path: Path) -> None:
    many = [One(f"{n:08d}", (n % 2,), encode(n)) for n in range(90)]
    pages = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_set(tmp_path / folder, {"train": [many[:40], many[40:]]}, seed=seed)
        page = _page(tmp_path / folder)
        assert len(page.images) == 60
        pages.append([image["src"] for image in page.images])
    assert pages[0] == pages[1] != pages[2]
    assert (tmp_path / "a/show.html").read_bytes() == (tmp_path / "b/show.html").read_bytes()


def test_damaged_images_have_a_place_of_their_own(tmp_path: Path) -> None:
    cut = encode(2, width=64, height=64)[:-900]
    ones = [One("0", (0,), encode(1)), One("1", (0,), cut), One("2", (1,), b"no image")]
    ones[2] = ones[2]._replace(image=encode(3))
    write_set(tmp_path, {"train": [ones]})
    data = bytearray((tmp_path / TAR).read_bytes())
    data[data.rindex(encode(3)) + 300] ^= 1
    (tmp_path / TAR).write_bytes(bytes(data))
    page = _page(tmp_path)
    assert len(page.images) == 1
    assert "damaged (crc32c differs)" in page.text and "no image (OSError)" in page.text
    (tmp_path / TAR).unlink()
    assert "no image (FileNotFoundError)" in _page(tmp_path).text


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    small_set(tmp_path)
    (tmp_path / "train/shard-000000.lab.npy").write_bytes(b"x")
    with pytest.raises(Misuse, match=r"shard-000000\.lab\.npy: its sha256 differs"):
        write_page(tmp_path, tmp_path / "show.html")
    assert not (tmp_path / "show.html").exists()


def _heights(svg: str) -> list[float]:
    return [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]


def test_the_histogram_of_sizes_counts_every_image_once() -> None:
    values = np.random.default_rng(0).lognormal(6, 0.5, 5000).astype(np.uint16) + 1
    svg = histograms.sizes(values, "px")
    counts = [int(text.replace(",", "")) for text in re.findall(r"px: ([\d,]+) images", svg)]
    assert sum(counts) == 5000
    heights = _heights(svg)
    assert heights.index(max(heights)) == counts.index(max(counts))
    assert f"median {np.median(values):.0f} px" in svg
    assert histograms.sizes(np.full(9, 32, np.uint16), "px") == ""
    for few in ([1, 65535], [3, 4], [1, 2, 4]):
        svg = histograms.sizes(np.array(few, np.uint16), "px")
        assert svg.count("1 images</title>") == len(few)


def test_few_classes_have_names_and_many_a_curve() -> None:
    few = histograms.classes((3, 0, 7), ("cat", "<b>", "a name that is far too long for it"))
    assert "cat: 3 images" in few and "&lt;b&gt;: 0 images" in few and "\u2026</text>" in few
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', few)]
    assert widths[2] > widths[0] > widths[1]
    counts = tuple(range(19_167))
    many = histograms.classes(counts, tuple(map(str, counts)))
    assert len(many) < 20_000
    line = re.search(r'<path d="(M[^"]+Z)" class="bar"', many)
    assert line
    tops = [float(y) for y in re.findall(r"V([\d.]+)H", line[1])]
    assert tops == sorted(tops) and tops[0] == histograms.TOP


def test_real_images_make_a_page_of_modest_size(real_data: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        members = [member for member in tar if member.isfile()][:120]
        images = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    write_set(tmp_path, {"train": [[One(f"{n:08d}", (0,), i) for n, i in enumerate(images)]]})
    page = _page(tmp_path)
    assert len(page.images) == 60
    assert (tmp_path / "show.html").stat().st_size < 2_000_000
