"""Pictures of every form, against arrays made by hand; and all that is refused in one line."""

import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cad.errors import UserError
from cad.inputs.picture import MAX_PIXELS, read_picture

SIDES = st.integers(1, 12)
PALETTE = [(10, 20, 30), (200, 0, 0), (0, 0, 255)]
INKS = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 255, 255, 0): (255, 0, 0),
        (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 128): (127, 127, 127)}  # fmt: skip
# What an orientation tag of EXIF asks for, written with numpy.
UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


def opaque(color):
    return np.dstack([color, np.full(color.shape[:2], 255)]).astype(np.uint8)


def rows(kind, seed, height, width):
    """A picture of a mode as Pillow holds it, and the RGBA that a person would see."""
    draw = np.random.default_rng(seed)
    levels = draw.integers(0, 256, (height, width, 4)).astype(np.uint8)
    color, gray, alpha = levels[..., :3], levels[..., 0], levels[..., 3]
    match kind:
        case "RGB":
            return Image.fromarray(color), opaque(color), {}
        case "RGBA":
            return Image.fromarray(levels), levels, {}
        case "L":
            return Image.fromarray(gray), opaque(np.dstack([gray] * 3)), {}
        case "LA":
            return Image.fromarray(np.dstack([gray, alpha]), "LA"), np.dstack([gray] * 3 + [alpha]), {}
        case "1":
            bits = gray > 127
            return Image.fromarray(bits), opaque(np.dstack([bits * 255] * 3)), {}
        case "I;16":
            deep = draw.integers(0, 65536, (height, width)).astype(np.uint16)
            return Image.fromarray(deep), opaque(np.dstack([deep // 256] * 3)), {}
        case "P" | "P with transparency":
            chosen = draw.integers(0, 3, (height, width)).astype(np.uint8)
            picture = Image.fromarray(chosen, "P")
            picture.putpalette([level for each in PALETTE for level in each])
            clear = bytes([255, 0, 77]) if kind != "P" else bytes([255] * 3)
            seen = np.dstack([np.array(PALETTE)[chosen], np.array(list(clear))[chosen]]).astype(np.uint8)
            return picture, seen, {"transparency": clear}
        case "RGB with a transparent colour":
            color = color // 200 * 200
            hidden = (color == (200, 0, 0)).all(-1)
            return Image.fromarray(color), np.dstack([color, np.where(hidden, 0, 255)]), {"transparency": (200, 0, 0)}
        case "I;16 with a transparent grey":
            deep = (draw.integers(0, 2, (height, width)) * 0x1234).astype(np.uint16)
            seen = np.dstack([deep >> 8] * 3 + [np.where(deep == 0x1234, 0, 255)])
            return Image.fromarray(deep), seen, {"transparency": 0x1234}
        case "CMYK":
            chosen = draw.integers(0, len(INKS), (height, width))
            inks, lights = np.array(list(INKS)), np.array(list(INKS.values()))
            return Image.fromarray(inks[chosen].astype(np.uint8), "CMYK"), opaque(lights[chosen]), {}
    raise AssertionError(kind)


KINDS = ["RGB", "RGBA", "L", "LA", "1", "I;16", "P", "P with transparency", "RGB with a transparent colour",
         "I;16 with a transparent grey", "CMYK"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), height=SIDES, width=SIDES)
def test_every_mode_is_read_as_it_is_seen(kind, seed, height, width):
    picture, seen, options = rows(kind, seed, height, width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("picture.tiff" if kind == "CMYK" else "picture.png")
        picture.save(path, **options)
        found = read_picture(path, 1)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, seen)


@settings(max_examples=20, deadline=None)
@given(orientation=st.sampled_from(sorted(UPRIGHT)), height=SIDES, width=SIDES)
def test_a_photograph_is_turned_upright(orientation, height, width):
    color = np.random.default_rng(height * 13 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.png"
        Image.fromarray(color).save(path, exif=exif)
        np.testing.assert_array_equal(read_picture(path, 1), opaque(UPRIGHT[orientation](color)))


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    found = read_picture(tmp_path / "red.jpg", 1).astype(int)
    assert abs(found - (255, 0, 0, 255)).max() <= 3


def test_sixteen_bit_colour_keeps_its_upper_eight(tmp_path):
    """Written by hand: Pillow writes no such PNG."""
    values = np.arange(2 * 3 * 3, dtype=np.uint16).reshape(2, 3, 3) * 3000
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    (tmp_path / "deep.png").write_bytes(png(3, 2, 16, 2, lines))
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png", 1), opaque(values // 256))


def png(width, height, depth, color, lines):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def animated(path):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def refused(path, min_side=32):
    with pytest.raises(UserError) as fault:
        read_picture(path, min_side)
    assert "\n" not in str(fault.value)
    assert str(fault.value).startswith(f"{path}: ")
    assert "; " in str(fault.value), "a remedy"
    return str(fault.value)


@pytest.mark.parametrize("name", ["two.gif", "two.png", "two.tiff", "two.webp"])
def test_animations_and_pages_are_refused(tmp_path, name):
    animated(tmp_path / name)
    assert "holds 2 pictures" in refused(tmp_path / name)


def test_a_gigantic_picture_is_refused_by_its_header_alone(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b""))
    assert f"is {side}x{side}, more than 100 million pixels" in refused(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2, b""))  # Pillow refuses this one itself
    assert "more than 100 million pixels" in refused(tmp_path / "bomb.png")


def test_a_small_picture_is_refused(tmp_path):
    Image.new("RGB", (31, 400)).save(tmp_path / "small.png")
    assert "is 31x400, smaller than input.min_side 32" in refused(tmp_path / "small.png")
    assert read_picture(tmp_path / "small.png", 31).shape == (400, 31, 4)


@pytest.mark.parametrize("name", ["whole.png", "whole.jpg", "whole.tiff", "whole.webp", "whole.gif"])
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 0.9))
def test_a_truncated_picture_is_refused(name, share):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        assert "damaged or no picture" in refused(path)


def test_what_is_no_picture_is_refused(tmp_path):
    assert "missing" in refused(tmp_path / "none.png")
    assert "a folder" in refused(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    assert "damaged or no picture" in refused(tmp_path / "text.jpg")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "float.tiff")
    assert "floating-point pixels" in refused(tmp_path / "float.tiff")
