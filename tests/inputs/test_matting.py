"""What shows the background, and rembg with a network of its file format (the latter where rembg is installed)."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cad.config import InputSettings
from cad.errors import UserError
from cad.inputs import matting
from cad.weights import table

SETTINGS = InputSettings(resolution=64, object_fraction=0.78125, alpha_threshold=127, white_threshold=250, min_side=32)
HAS_REMBG = all(importlib.util.find_spec(name) for name in ("rembg", "onnxruntime"))


def picture(background, alpha=255):
    pixels = np.full((40, 40, 4), (*background, 255), np.uint8)
    pixels[10:30, 10:30] = (200, 30, 30, 255)
    pixels[0, 0, 3] = alpha
    return pixels


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (picture((255, 255, 255)), "white"),
        (picture((250, 252, 255)), "white"),
        (picture((249, 255, 255)), "other"),
        (picture((90, 120, 60)), "other"),
        (picture((90, 120, 60), alpha=127), "alpha"),
        (picture((90, 120, 60), alpha=128), "other"),
        (picture((255, 255, 255), alpha=0), "alpha"),
    ],
)
def test_the_background_is_told_apart(pixels, kind):
    assert matting.background_of(pixels, SETTINGS, 0.75) == kind


def test_the_share_of_white_border_counts_each_outermost_pixel_once():
    pixels = picture((255, 255, 255))
    pixels[-1, :, :3] = 0  # 40 of the 4 * 40 - 4 = 156 outermost pixels
    assert matting.background_of(pixels, SETTINGS, 116 / 156) == "white"
    assert matting.background_of(pixels, SETTINGS, 117 / 156) == "other"


def test_without_rembg_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(matting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^rembg: is not installed.*pip install 'cad\[matting\]', or give a picture"):
        matting.cut_out(picture((90, 120, 60)), "u2net", tmp_path)


def test_a_file_of_another_digest_than_the_registry_s_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(matting.importlib.util, "find_spec", lambda name: True)  # rembg need not be here for this
    path = tmp_path / "u2net.onnx"
    path.write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"u2net\.onnx: is damaged or another file; remove it and download https://"):
        matting.matting_weights("u2net", tmp_path)
    monkeypatch.setattr(table, "MODELS", (replace(table.find("u2net"), md5=hashlib.md5(b"cut off").hexdigest()),))
    assert matting.matting_weights("u2net", tmp_path) == path
    (tmp_path / "own.onnx").write_bytes(b"of no known digest")
    assert matting.matting_weights("own", tmp_path) == tmp_path / "own.onnx"


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(index: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return number(index << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(index << 3 | 2) + number(len(data)) + data


def write_network(path: Path) -> None:
    """An ONNX file with U2-Net's input and output: the mask is the brightness."""

    def floats(name: str, shape: tuple[int, ...]) -> bytes:
        sides = b"".join(field(1, field(1, side)) for side in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sides)))

    over_channels = field(1, "axes") + field(8, 1) + field(20, 7)
    node = field(1, "input") + field(2, "mask") + field(4, "ReduceMean") + field(5, over_channels)
    ends = field(11, floats("input", (1, 3, 320, 320))) + field(12, floats("mask", (1, 1, 320, 320)))
    graph = field(1, node) + field(2, "brightness") + ends
    path.write_bytes(field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, graph))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_REMBG, reason="the extra `matting` is not installed")
def test_the_network_gives_the_alpha_and_the_colours_stay(tmp_path):
    write_network(tmp_path / "u2netp.onnx")
    pixels = np.full((64, 96, 4), (10, 10, 10, 255), np.uint8)
    pixels[16:48, 20:60, :3] = (240, 250, 230)
    cut = matting.cut_out(pixels, "u2netp", tmp_path)
    np.testing.assert_array_equal(cut[..., :3], pixels[..., :3])
    assert cut[32, 40, 3] > 230, "Lanczos overshoots at the edges, where the largest value is taken"
    assert cut[2, 2, 3] < 25


@pytest.mark.slow
@pytest.mark.skipif(not HAS_REMBG, reason="the extra `matting` is not installed")
def test_a_missing_or_broken_network_is_one_line_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"u2netp.onnx: is missing.*or give a picture with transparency"):
        matting.cut_out(picture((90, 120, 60)), "u2netp", tmp_path)
    (tmp_path / "u2netp.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"u2netp.onnx: is no network of u2netp"):
        matting.cut_out(picture((90, 120, 60)), "u2netp", tmp_path)
    write_network(tmp_path / "u2net.onnx")
    with pytest.raises(UserError, match=r"u2net.onnx: is damaged or another file"):  # the registry knows its digest
        matting.cut_out(picture((90, 120, 60)), "u2net", tmp_path)
    write_network(tmp_path / "u-none.onnx")
    with pytest.raises(UserError, match="rembg has no 'u-none'"):
        matting.cut_out(picture((90, 120, 60)), "u-none", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"u2netp.onnx", "u2net.onnx", "u-none.onnx"}
