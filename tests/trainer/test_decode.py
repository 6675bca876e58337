from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from images import encoded, pixels, png_of_size
from PIL import Image, features

from trainer.decode import decode_image, inspect
from trainer.failure import DataError

RGB = pixels(0)
GREY = pixels(1, channels=1)
GREY_16 = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)


def grey_as_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_image(data))


def test_colour_comes_out_as_it_went_in() -> None:
    decoded = decode(encoded(Image.fromarray(RGB)))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, RGB)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_greyscale_becomes_three_equal_channels(form: str) -> None:
    options = {"quality": 100} if form == "JPEG" else {}
    decoded = decode(encoded(Image.fromarray(GREY), form, **options))
    assert np.abs(decoded.astype(int) - grey_as_rgb(GREY)).max() <= (3 if form == "JPEG" else 0)


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 12), value) for value in (255, 0, 0, 0)])
    red, green, blue = decode(encoded(cmyk, "JPEG", quality=95))[6, 8]
    assert (red < 10, green > 245, blue > 245) == (True, True, True)


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_and_not_clipped(form: str) -> None:
    decoded = decode(encoded(Image.fromarray(GREY_16), form))
    expected = np.rint(GREY_16 / 65535 * 255).astype(np.uint8)
    assert len(np.unique(decoded)) > 100
    assert np.array_equal(decoded, grey_as_rgb(expected))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_a_pixel_are_refused_since_white_is_unknown(mode: str) -> None:
    with pytest.raises(DataError, match="TIFF with 32 bits a pixel: no telling which value is white"):
        decode(encoded(Image.new(mode, (4, 4), 70000), "TIFF"))


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert decode(encoded(image))[0].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette(range(48))
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 9)
    transparent = (9, 9, 9) if mode == "RGB" else 9
    assert decode(encoded(image, transparency=transparent))[0, 1].tolist() == [255, 255, 255]


def test_grey_with_alpha_is_laid_over_white() -> None:
    assert decode(encoded(Image.new("LA", (1, 1), (100, 0))))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_stands_upright_whatever_its_exif_orientation(orientation: int, form: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # only the top left is white
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored[orientation])), form, exif=exif, **options)
    assert np.abs(decode(data).astype(int) - upright).max() <= 2
    assert inspect(data)[:2] == (24, 16)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert decode(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_each_format_is_known_by_its_content(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    endings = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
    assert inspect(encoded(0, form)) == (16, 12, endings.get(form, form.lower()))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_a_truncated_image_is_refused(form: str) -> None:
    data = encoded(Image.fromarray(pixels(3, 200, 200)), form)
    with pytest.raises(DataError, match=r"broken image: \w+"):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file: 0 bytes"),
        (b"<html>no</html>", r"not an image, or its header is broken: starts with b'<html>no'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\xff\xd8\xff\xe0\x00", "not an image, or its header is broken"),
        (png_of_size(10_000, 10_000), "decompression bomb: 100000000 pixels, expected at most 89478485 pixels"),
        (png_of_size(60_000, 60_000), "decompression bomb: 3600000000 pixels, expected at most 89478485 pixels"),
    ],
    ids=["empty", "no image", "EPS, a program", "a bare header", "a bomb", "a large bomb"],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),
    ],
    ids=["plain", "progressive", "with restarts", "grey", "CMYK"],
)
def test_a_damaged_jpeg_is_accepted_exactly_if_it_decodes(mode: str, options: dict[str, object]) -> None:
    """`inspect` makes few of a JPEG's pixels, and must find no other faults for that."""

    def verdict(found: Callable[[bytes], object], data: bytes) -> object:
        try:
            return found(data)
        except DataError as error:
            return error.message

    whole = encoded(Image.fromarray(pixels(5, 41, 58) // 3).convert(mode), "JPEG", **options)
    random = np.random.default_rng(0)
    verdicts = []
    for number in range(300):
        data = bytearray(whole)
        at = int(random.integers(len(data)))
        if number % 3 == 0:
            del data[at:]
        elif number % 3 == 1:
            data[at] = random.integers(256)
        else:
            del data[at : at + int(random.integers(1, 20))]
        verdicts.append(verdict(lambda data: decode_image(data).size, bytes(data)))
        assert verdict(lambda data: inspect(data)[:2], bytes(data)) == verdicts[-1]
    assert len(set(verdicts)) > 3  # some decode, others do not, for several reasons


def test_a_damaged_exif_block_is_an_error_and_not_a_guess() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(0, "JPEG", exif=exif))
    count = data.index(b"Exif\0\0") + 6 + 8  # of the block's entries, after its name and the TIFF header
    data[count : count + 2] = b"\x20\x20"
    with pytest.raises(DataError, match=r"broken image: .*EXIF"):
        decode(bytes(data))


def test_a_damaged_checksum_is_an_error() -> None:
    data = bytearray(encoded(0))
    at = data.index(b"IDAT") + 8
    data[at] ^= 0xFF
    with pytest.raises(DataError, match="broken image"):
        decode(bytes(data))


def test_what_is_decoded_is_what_pillow_makes_of_a_plain_jpeg() -> None:
    data = encoded(Image.fromarray(pixels(5, 40, 60)), "JPEG")
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
