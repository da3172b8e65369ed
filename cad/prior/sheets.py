"""Contact sheets: titled groups of labelled rows of pictures, with coloured frames (Figures 11 and 12)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GREEN, RED, AMBER, GREY = (34, 139, 76), (200, 48, 44), (214, 137, 16), (150, 150, 150)
INK, PAPER, PANEL = (32, 32, 36), (255, 255, 255), (246, 246, 248)
Color = tuple[int, int, int]

CELL = 88  # pixels of a picture
FRAME = 3
GAP = 8
LINE = 15
MARGIN = 18


@dataclass(frozen=True)
class Row:
    """One line of a group: a label of at most three lines, and pictures [N, H, W, 3] with a frame colour each."""

    label: str
    images: np.ndarray
    frames: Sequence[Color]


@dataclass(frozen=True)
class Group:
    """A titled block of rows under column headings."""

    title: str
    color: Color
    columns: Sequence[str]
    rows: Sequence[Row]


def draw_sheet(title: str, reference: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """The groups side by side beside the reference [H, W, 3], as uint8 [height, width, 3]; empty groups say so."""
    label_width = 96
    widths = [label_width + max(len(group.columns), 2) * (CELL + GAP) + 2 * GAP for group in groups]
    tallest = max((len(group.rows) for group in groups), default=0)
    head = MARGIN + 2 * LINE + GAP
    width = MARGIN + CELL + 2 * MARGIN + sum(widths) + MARGIN * len(groups)
    height = head + 3 * LINE + GAP + max(tallest, 1) * (CELL + GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(17))
    draw.text((MARGIN, head + GAP), "input", INK, _font(12))
    _picture(sheet, draw, (MARGIN, head + 3 * LINE), reference, GREY)
    left = MARGIN + CELL + 2 * MARGIN
    for group, span in zip(groups, widths, strict=True):
        draw.rectangle([left, head, left + span, height - MARGIN // 2], fill=PANEL)
        draw.rectangle([left, head, left + span, head + 3], fill=group.color)
        draw.text((left + GAP, head + GAP), group.title, group.color, _font(13))
        for column, heading in enumerate(group.columns):
            x = left + label_width + GAP + column * (CELL + GAP)
            draw.text((x, head + GAP + LINE + 4), heading, INK, _font(11))
        top = head + 3 * LINE
        if not group.rows:
            draw.text((left + GAP, top), "none", GREY, _font(12))
        for row in group.rows:
            for line, words in enumerate(row.label.split("\n")):
                draw.text((left + GAP, top + 10 + line * LINE), words, INK, _font(11))
            for column, (image, color) in enumerate(zip(row.images, row.frames, strict=True)):
                _picture(sheet, draw, (left + label_width + GAP + column * (CELL + GAP), top), image, color)
            top += CELL + GAP
        left += span + MARGIN
    return np.asarray(sheet)


def _picture(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], image: np.ndarray, color: Color
) -> None:
    side = CELL - 2 * FRAME
    draw.rectangle([place[0], place[1], place[0] + CELL - 1, place[1] + CELL - 1], fill=color)
    small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    sheet.paste(small, (place[0] + FRAME, place[1] + FRAME))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
