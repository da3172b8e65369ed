"""Pictures and films as files: checked reading, and writing that gives equal bytes for equal pixels."""

import io
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cad.artifacts.files import PARTIAL, full_disk_named, write_atomic
from cad.errors import UserError

Image = NDArray[Any]
PNG_COMPRESSION = 6  # [ours] zlib's default, fixed here because the level changes the bytes
VIDEO_QUALITY = "18"  # [ours] x264's CRF at which an orbit looks like its frames


def read_image(path: Path) -> Image:
    """Read a picture: uint8 [H, W] (gray), [H, W, 3] (RGB), [H, W, 4] (RGBA), or uint16 [H, W] (16 bit).

    A photo's orientation tag is applied, palettes are resolved. UserError if it is missing, truncated or no picture.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    path = Path(path)
    try:
        with Pillow.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):
                return np.asarray(picture).astype(np.uint16)
            if picture.mode not in ("L", "RGB", "RGBA"):
                transparent = "transparency" in picture.info or picture.mode in ("LA", "PA", "La", "RGBa")
                gray = picture.mode == "1"
                picture = picture.convert("RGBA" if transparent else "L" if gray else "RGB")
            return np.asarray(picture)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give the path of a PNG or JPEG picture") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; give the path of a PNG or JPEG picture") from None
    except (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        # Pillow says SyntaxError and ValueError of broken PNG chunks, OSError of truncated data.
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error) or "unreadable"
        raise UserError(f"{path}: damaged or no picture ({reason}); give a whole PNG or JPEG file") from None


def write_image(path: Path, pixels: Image) -> None:
    """Write a PNG: uint8 [H, W], [H, W, 3], [H, W, 4], or uint16 [H, W]; ValueError for anything else."""
    from PIL import Image as Pillow

    channels = pixels.shape[2:] if pixels.ndim in (2, 3) else None
    kinds = {(np.dtype(np.uint8), c) for c in ((), (3,), (4,))} | {(np.dtype(np.uint16), ())}
    if (pixels.dtype, channels) not in kinds:
        raise ValueError(f"{path}: a PNG is uint8 [H, W(, 3 or 4)] or uint16 [H, W], not {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    write_atomic(path, buffer.getvalue())


def contact_sheet(images: NDArray[np.uint8], columns: int, scale: int) -> NDArray[np.uint8]:
    """Lay out uint8 [n, H, W, 3] row by row in a grid on white, each pixel repeated `scale` times in both directions.

    Returns uint8 [rows * H * scale, columns * W * scale, 3].
    """
    count, height, width, channels = images.shape
    rows = max(1, -(-count // columns))
    cells = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = grid.reshape(rows * height, columns * width, channels)
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Write an H.264 MP4 (yuv420p) from uint8 [H, W, 3] frames of one size; odd sides are extended by one pixel.

    One thread and bit-exact flags: equal frames give equal bytes. ValueError if there is no frame or the sizes differ.
    """
    import imageio_ffmpeg

    path = Path(path)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    height, width = first.shape[0] + first.shape[0] % 2, first.shape[1] + first.shape[1] % 2
    partial = path.with_name(path.name + PARTIAL)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-threads", "1", "-i", "-"]
    coder = ["-an", "-c:v", "libx264", "-crf", VIDEO_QUALITY, "-pix_fmt", "yuv420p", "-threads", "1"]
    scaler = ["-sws_flags", "bicubic+accurate_rnd+full_chroma_int+bitexact", "-filter_threads", "1"]
    exact = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart"]
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-nostdin"]
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Messages go to a file: a pipe that nobody empties would stop ffmpeg, and us with it.
        with tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                [*program, *raw, *coder, *scaler, *exact, "-f", "mp4", str(partial)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
            pipe = process.stdin
            assert pipe is not None
            try:
                for frame in itertools.chain([first], frames):
                    if frame.shape != first.shape or frame.dtype != np.uint8:
                        raise ValueError(f"{path}: a frame is {frame.dtype} {frame.shape}, the first {first.shape}")
                    even = np.pad(frame, ((0, height - len(frame)), (0, width - frame.shape[1]), (0, 0)), mode="edge")
                    pipe.write(even.tobytes())
                pipe.close()
            except BrokenPipeError:  # ffmpeg ended early; its message below says why
                with suppress(BrokenPipeError):  # closing would write what is still buffered
                    pipe.close()
            except BaseException:
                process.kill()
                process.wait()
                partial.unlink(missing_ok=True)
                raise
            code = process.wait()
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip()
        if code != 0:
            partial.unlink(missing_ok=True)
            if "No space left" in said:
                raise UserError(f"{path}: no space left on the disk; free some and run the same command again")
            raise RuntimeError(f"ffmpeg failed on {path}: {said}")
        os.replace(partial, path)
