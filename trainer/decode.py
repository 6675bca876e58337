"""The one decoder: an image is imported if it decodes here, and what training sees is what comes out here.

Every image becomes 8-bit RGB:

- greyscale, palette, CMYK and YCCK are converted as Pillow converts them, without colour management;
- 16-bit channels are scaled to 0..255, never clipped (Pillow itself takes the high byte of 16-bit colour);
- transparent pixels are laid over white;
- the EXIF orientation is applied;
- of an animation, the first frame counts.

Anything else that is wrong with the bytes, a warning of Pillow's included, is a DataError.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer.failure import DataError

ENDINGS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further pictures behind it; Pillow finds it while it looks for a JPEG
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "BMP": "bmp",
    "DIB": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
    "AVIF": "avif",
}
FORMATS = tuple(form for form in ENDINGS if form != "MPO")
"""Formats that are read: no EPS, which would start Ghostscript on a stranger's program."""

MAX_PIXELS = 89_478_485
"""Largest image that is decoded: Pillow's own limit, beyond which it speaks of a decompression bomb."""

# Pillow warns where a header or its EXIF block is damaged, and goes on with what it guesses. Filters belong to the
# whole process: warnings.catch_warnings around each call would not be safe with threads.
warnings.filterwarnings("error", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_image(data: bytes) -> Image.Image:
    """The image in `data` as a Pillow image of mode RGB. Raises DataError with the reason when it is none, or broken.

    The message names no file: the caller knows which one it was.
    """
    with _opened(data) as image:
        image.load()
        upright = _rgb(image)
        method = _TRANSPOSE.get(_orientation(image))
        return upright if method is None else upright.transpose(method)


def inspect(data: bytes) -> tuple[int, int, str]:
    """Width and height of what `decode_image` makes of `data`, and the format's usual file ending; raises as it does.

    Of a JPEG every bit is read, but only an eighth of the pixels each way is made: that is where half the time goes,
    and where nothing can be wrong any more.
    """
    with _opened(data) as image:
        size = image.size
        is_sketched = image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8))) is not None
        image.load()
        width, height = size if is_sketched else _rgb(image).size
        if _orientation(image) in _TURNING:
            width, height = height, width
        return width, height, ENDINGS[image.format or ""]


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image in `data`, not yet decoded; what goes wrong with it inside the context is a DataError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _bomb(f"{image.width} x {image.height}")
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(_number(error)) from error
    except UnidentifiedImageError as error:
        raise DataError(_unidentified(data)) from error
    except Exception as error:
        # Over broken bytes Pillow's decoders raise what they please: OSError, SyntaxError, struct.error, IndexError, …
        raise DataError(f"broken image: {error or type(error).__name__}") from error


def _bomb(num_pixels: str) -> DataError:
    return DataError(f"decompression bomb: {num_pixels} pixels, expected at most {MAX_PIXELS} pixels")


def _unidentified(data: bytes) -> str:
    if not data:
        return "empty file: 0 bytes"
    return f"not an image, or its header is broken: starts with {data[:8]!r}, expected one of {', '.join(FORMATS)}"


def _number(error: Exception) -> str:
    """The pixels that Pillow counted before it refused: it names a limit of its own after them."""
    found = re.search(r"\d+", str(error))
    return found[0] if found else "too many"


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation of an image that is loaded, 1 is upright; a stranger may have put anything there."""
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return 1  # most files; looking for an orientation elsewhere would cost a tenth of decoding
    return image.getexif().get(0x0112, 1)


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNING = (5, 6, 7, 8)  # orientations that swap width and height


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{image.format} with 32 bits a pixel: no telling which value is white, expected at most 16 bits"
        )
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """A 16-bit greyscale image in RGB: 65535 becomes 255, rounded to the nearest."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
