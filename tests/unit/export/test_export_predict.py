"""Predictions: the package's own preprocessing, names and probabilities, bad images named."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decode import decode_eval
from pipeline.export import predict as predict_module
from pipeline.export.package import load_package
from pipeline.export.predict import predict


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(5):
        path = tmp_path / f"image-{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_classes_come_by_falling_probability_with_their_shown_names(
    package_folder: Path, images: list[Path]
) -> None:
    package = load_package(package_folder)
    results = list(predict(package, images, 3))
    assert [result.image for result in results] == images
    for path, result in zip(images, results, strict=True):
        pixels = torch.tensor(decode_eval(path.read_bytes(), package.preprocess, 32))
        chances = package.logits(pixels[None]).softmax(1)[0]
        assert len(result.classes) == 3 and not result.error
        names = [package.labels.text(int(i)) for i in chances.argsort(descending=True)[:3]]
        assert [name for name, _ in result.classes] == names
        assert result.classes[0][1] == pytest.approx(float(chances.max()), abs=1e-6)


def test_top_k_is_cut_to_the_classes_and_sums_to_one(
    package_folder: Path, images: list[Path]
) -> None:
    (result,) = predict(load_package(package_folder), images[:1], 50)
    assert {name for name, _ in result.classes} == {"cat", "dog", "owl", "eel"}
    assert sum(p for _, p in result.classes) == pytest.approx(1.0, abs=1e-6)


def test_bad_images_are_named_and_do_not_stop_the_others(
    package_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    half = tmp_path / "half.jpg"
    half.write_bytes(images[0].read_bytes()[:300])
    text = tmp_path / "text.jpg"
    text.write_text("<html>")
    paths = [images[0], half, tmp_path / "missing.jpg", text, tmp_path, images[1]]
    results = list(predict(load_package(package_folder), paths, 1))
    assert [bool(result.error) for result in results] == [False, True, True, True, True, False]
    assert "not a whole image" in results[1].error
    assert results[2].error == "No such file or directory"
    assert results[4].error == "Is a directory"


def test_many_images_go_in_batches_and_png_works(
    package_folder: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = load_package(package_folder)
    whole = list(predict(package, images, 1))
    monkeypatch.setattr(predict_module, "BATCH", 2)
    split = list(predict(package, images, 1))
    assert [r.classes[0][0] for r in split] == [r.classes[0][0] for r in whole]
    png = tmp_path / "grey.png"
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 200).save(buffer, "PNG")
    png.write_bytes(buffer.getvalue())
    (result,) = predict(package, [png], 1)
    assert result.classes and list(predict(package, [], 1)) == []
