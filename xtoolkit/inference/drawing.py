"""Pictures with boxes and heat over them, laid out on a sheet with what is said of them."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xtoolkit.data.images import LazyImage

COLOURS = ("#d6450b", "#1f6fd1", "#147a4b", "#8a3fc0", "#b88700", "#c2186b", "#0f8b8d", "#5b5b5b")
HOT, LETTERS, GAP = "#e3120b", 14, 8


def fitted(picture: LazyImage, side: int) -> Image.Image:
    """An open picture, once, in RGB, its longer side ``side`` pixels."""
    scale = side / max(picture.width, picture.height)
    return picture.resized(side).resize([max(1, round(scale * length)) for length in (picture.width, picture.height)])


def boxed(image: Image.Image, boxes: Tensor) -> Image.Image:
    """A copy with boxes (K, 4), centre x, centre y, w, h in shares of the picture, each in the next of ``COLOURS``."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for number, (cx, cy, w, h) in enumerate(boxes.tolist()):
        w, h = abs(w), abs(h)
        at = [(cx - w / 2) * image.width, (cy - h / 2) * image.height, (cx + w / 2) * image.width, (cy + h / 2) * image.height]
        draw.rectangle(at, outline="white", width=5)
        draw.rectangle(at, outline=COLOURS[number % len(COLOURS)], width=3)
    return image


def heated(image: Image.Image, values: Tensor) -> Image.Image:
    """A copy that is the redder the larger the values (rows, columns) are, at least 0, over their own largest."""
    levels = 200 * values.float().cpu() / values.max().clamp(min=torch.finfo(torch.float32).tiny).cpu()
    mask = Image.fromarray(levels.round().byte().numpy()).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, HOT), image, mask)


def sheet(rows: list[list[tuple]]) -> Image.Image:
    """Panels (image, lines [(text, colour)]) in rows, the lines of each below it, cut where they are too long."""
    font = ImageFont.load_default(LETTERS)
    line = LETTERS + 5
    heights = [max(image.height + line * len(said) for image, said in row) + GAP for row in rows]
    width = max(sum(image.width + GAP for image, _ in row) for row in rows) + GAP
    page = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw, y = ImageDraw.Draw(page), GAP
    for row, height in zip(rows, heights):
        x = GAP
        for image, said in row:
            page.paste(image, (x, y))
            for number, (text, colour) in enumerate(said):
                while len(text) > 1 and draw.textlength(text, font) > image.width:
                    text = text[:-2].rstrip() + "…"
                draw.text((x, y + image.height + 2 + line * number), text, colour, font)
            x += image.width + GAP
        y += height
    return page


def save(page: Image.Image, path: Path) -> None:
    """Writes a page as PNG, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        page.save(unfinished, "PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
