"""Image codec: pixels to encoded files and back."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def encode_image(pixels: UInt8[np.ndarray, "height width 3"], codec: str = "png") -> bytes:
    """Encode pixels as an image file: the same bytes for the same pixels.

    WebP's lossless mode at its fastest setting takes two fifths to three quarters of PNG's time and five sixths of its
    bytes, on photographs of 128 to 1,024 pixels; benchmarks/storage.md has the figures.

    Args:
        pixels: The image.
        codec: ``webp`` or ``png``, which are lossless, or ``jpeg:QUALITY``.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if codec == "png":
        image.save(buffer, format="PNG", compress_level=3)
    elif codec == "webp":
        image.save(buffer, format="WEBP", lossless=True, method=0, quality=50)
    else:
        image.save(buffer, format="JPEG", quality=int(codec.removeprefix("jpeg:")), subsampling=0)
    return buffer.getvalue()


def decode_image(data: bytes, size: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file to RGB pixels; transparency is composited on white.

    Args:
        data: The bytes of an image file.
        size: Resize the image to ``size`` × ``size`` pixels (bilinear, aspect ratio not kept); None keeps its size.

    Raises:
        OSError: The bytes are not a readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                picture = Image.new("RGB", rgba.size, "white")
                picture.paste(rgba, mask=rgba.getchannel("A"))
            else:
                picture = image.convert("RGB")
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # Pillow's other errors for it
        raise OSError(str(error)) from error
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)
