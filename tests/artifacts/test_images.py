import errno
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cad.artifacts import contact_sheet, read_image, write_image, write_video
from cad.errors import UserError


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(
        arrays.arrays(np.uint8, st.sampled_from([(1, 1), (3, 5), (3, 5, 3), (2, 2, 4)])),
        arrays.arrays(np.uint16, st.sampled_from([(1, 1), (3, 5)])),
    )
)
def test_a_picture_comes_back_as_it_was(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    write_image(path, pixels)
    first = path.read_bytes()
    read = read_image(path)
    assert read.dtype == pixels.dtype
    np.testing.assert_array_equal(read, pixels)
    write_image(path, pixels)
    assert path.read_bytes() == first


@pytest.mark.parametrize("pixels", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.zeros(3, np.uint8)])
def test_what_is_no_picture_is_not_written(tmp_path, pixels):
    with pytest.raises(ValueError, match="a PNG is uint8"):
        write_image(tmp_path / "a.png", pixels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "value", "wanted"),
    [("P", 0, (1, 1, 3)), ("LA", (7, 9), (1, 1, 4)), ("1", 1, (1, 1)), ("CMYK", (0, 0, 0, 0), (1, 1, 3))],
)
def test_other_modes_become_the_four_that_are_used(tmp_path, mode, value, wanted):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (1, 1), value).save(path)
    assert read_image(path).shape == wanted
    assert read_image(path).dtype == np.uint8


def test_a_photo_is_turned_as_its_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # held a quarter turn to the right
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 2, 3)


@pytest.mark.parametrize("case", ["missing", "folder", "text", "empty", "cut", "chunk"])
def test_a_broken_picture_is_one_line(tmp_path, case):
    path = tmp_path / "a.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    whole = path.read_bytes()
    path.unlink()
    if case == "folder":
        path.mkdir()
    elif case != "missing":
        flipped = bytearray(whole)
        flipped[60] ^= 255
        path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2], "chunk": flipped}[case])
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert ";" in str(error.value)
    assert "\n" not in str(error.value)


def test_contact_sheet_against_hand_placed_cells():
    images = np.stack([np.full((1, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = contact_sheet(images, columns=2, scale=2)
    assert sheet.shape == (4, 8, 3)
    rows = [[10, 10, 10, 10, 20, 20, 20, 20], [30, 30, 30, 30, 255, 255, 255, 255]]
    np.testing.assert_array_equal(sheet[..., 0], np.repeat(rows, 2, axis=0))


def frames(side: int, count: int = 4):
    for k in range(count):
        frame = np.zeros((side, side, 3), np.uint8)
        frame[:, : 2 * k + 2] = (250, 120, 30)
        yield frame


@pytest.mark.parametrize("side", [16, 17])
def test_two_videos_of_the_same_frames_are_byte_identical(tmp_path, side):
    write_video(tmp_path / "a.mp4", frames(side), 24)
    write_video(tmp_path / "b.mp4", frames(side), 24)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    meta = next(reader)
    even = side + side % 2
    assert (meta["size"], meta["fps"], meta["pix_fmt"].split("(")[0]) == ((even, even), 24.0, "yuv420p")
    shown = [np.frombuffer(data, np.uint8).reshape(even, even, 3) for data in reader]
    assert len(shown) == 4
    for got, wanted in zip(shown, frames(side), strict=True):
        # Chroma has half the resolution, so colours match away from the edge between the two areas only.
        assert abs(got[8, 0].astype(int) - wanted[8, 0]).max() < 30


def test_a_video_needs_frames_of_one_size(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", iter(()), 24)
    with pytest.raises(ValueError, match="the first"):
        write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], 24)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_frame_leaves_no_video(tmp_path):
    def broken():
        yield from frames(16, 1)
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(UserError, match="no space left"):
        write_video(tmp_path / "a.mp4", broken(), 24)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_that_ffmpeg_meets_is_one_line(tmp_path, monkeypatch):
    real = subprocess.Popen

    def popen(command, **named):
        script = "echo 'av_interleaved_write_frame(): No space left on device' >&2; exit 1"
        return real(["sh", "-c", script], **named)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(UserError, match="no space left"):
        write_video(tmp_path / "a.mp4", frames(64, 50), 24)
