"""Image codec: pixels to encoded files and back."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def encode_image(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode pixels as a PNG file. Lossless, and the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
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
