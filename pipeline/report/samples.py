"""Evaluated images with what the model said; thumbnails travel inside the page."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from pipeline.report.facts import Evaluation, Sample
from pipeline.report.svg import text_of

THUMBNAIL_PX = 112
PIXELATED_BELOW_PX = 64
MAX_EACH = 12
FORMATS = ("JPEG", "PNG", "WEBP")


def samples(evaluation: Evaluation) -> str:
    """Return the HTML of the wrong and the right predictions, at most twelve each."""
    wrong = [s for s in evaluation.samples if s.label != s.predicted]
    right = [s for s in evaluation.samples if s.label == s.predicted]
    return _gallery("Wrong", wrong, evaluation) + _gallery("Right", right, evaluation)


def _gallery(title: str, chosen: Sequence[Sample], evaluation: Evaluation) -> str:
    if not chosen:
        return ""
    tiles = "".join(_tile(sample, evaluation) for sample in chosen[:MAX_EACH])
    return f'<h4>{title}</h4><div class="gallery">{tiles}</div>'


def _tile(sample: Sample, evaluation: Evaluation) -> str:
    right = sample.label == sample.predicted
    said, true = evaluation.name(sample.predicted), evaluation.name(sample.label)
    mark, style = ("\u2713", "good") if right else ("\u2717", "bad")
    truth = "" if right else f'<span class="truth">is {text_of(true)}</span>'
    return (
        f'<figure class="sample {style}">{_picture(sample, true)}<figcaption><span class="mark">'
        f"{mark}</span> {text_of(said)} <small>{sample.probability:.0%}</small>{truth}"
        f"</figcaption></figure>"
    )


def _picture(sample: Sample, true: str) -> str:
    encoded = thumbnail(sample.image) if sample.image else None
    if encoded is None:
        return f'<div class="blank">image {sample.id}</div>'
    kind, data, small = encoded
    style = ' class="pixelated"' if small else ""
    text = base64.b64encode(data).decode()
    return f'<img{style} src="data:image/{kind};base64,{text}" alt="{text_of(true)}">'


def thumbnail(data: bytes) -> tuple[str, bytes, bool] | None:
    """Return (format, bytes, whether it is tiny) of a small copy; None for what is no image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            plain = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small = max(plain.size) < PIXELATED_BELOW_PX
    plain.thumbnail((THUMBNAIL_PX * 2, THUMBNAIL_PX * 2))
    buffer = io.BytesIO()
    if small:
        plain.save(buffer, "PNG")
        return "png", buffer.getvalue(), True
    plain.save(buffer, "JPEG", quality=82)
    return "jpeg", buffer.getvalue(), False
