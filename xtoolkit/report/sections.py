"""The parts of the report that show pictures and texts: retrieval, boxes, masks. All that a user wrote is escaped."""

import base64
import math
from html import escape


def picture(jpeg: bytes, alt: str, overlay: str = "", classes: str = "") -> str:
    """An image in the page itself, with an SVG in units of the picture over it."""
    data = base64.b64encode(jpeg).decode()
    over = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{overlay}</svg>' if overlay else ""
    return (f'<div class="pic {classes}"><img alt="{escape(alt, quote=True)}" src="data:image/jpeg;base64,{data}">'
            f"{over}</div>")


def retrieval(queries: list[dict]) -> str:
    """Queries with the pictures that they bring up, the right one framed; if it is not among them it stands apart."""
    return f'<div class="queries">{"".join(map(_query, queries))}</div>'


def _query(query):
    first, found = query["rank"] == 1, any(p["right"] for p in query["pictures"])
    row = "".join(picture(p["picture"], "right" if p["right"] else "wrong", classes="right" if p["right"] else "")
                  for p in query["pictures"])
    if not found:
        row += "<hr>" + picture(query["right"], "the right picture", classes="missed")
    place = "right picture first" if first else f"right picture at place {query['rank']}"
    rank = f'<span class="rank{" top" if first else ""}">{place}</span>'
    return (f'<section class="query"><p><q>{escape(query["query"])}</q>{rank}</p>'
            f'<div class="strip{" found" if found else ""}">{row}</div></section>')


def boxes(examples: list[dict]) -> str:
    """Predicted and true boxes on their pictures."""
    shown = "".join(
        f'<figure>{picture(e["picture"], e["text"], box(e["true"], "true") + box(e["predicted"], "predicted"))}'
        f'<figcaption>{escape(e["text"])}<span>IoU {e["iou"]:.2f}</span></figcaption></figure>' for e in examples)
    return ('<p class="how"><span><i class="t"></i>true box</span><span><i class="p"></i>predicted box</span></p>'
            f'<div class="boxes">{shown}</div>')


def box(where, kind: str) -> str:
    """The overlay of a box cx, cy, w, h in [0, 1]; ``kind`` is the class of its line."""
    cx, cy, w, h = where
    place = f'x="{cx - w / 2:.4f}" y="{cy - h / 2:.4f}" width="{max(w, 0):.4f}" height="{max(h, 0):.4f}"'
    return f'<rect class="halo" {place}/><rect class="box {kind}" {place}/>'


def masked(examples: list[dict]) -> str:
    """Pictures with their masked patches grey, texts with their masked tokens as blocks."""
    if any(e["picture"] for e in examples):
        return f'<div class="masks">{"".join(map(_masked_figure, examples))}</div>'
    return "".join(words(e["words"]) for e in examples)


def patches(mask: list, kind: str = "patch") -> str:
    """The overlay of patches, row by row: a square of class ``kind`` for each that is True."""
    side = math.isqrt(len(mask))
    size = 1.01 / side  # a hair larger than a patch, or the seams between patches would show the picture
    return "".join(f'<rect class="{kind}" x="{i % side / side:.4f}" y="{i // side / side:.4f}" width="{size:.4f}" '
                   f'height="{size:.4f}"/>' for i, hidden in enumerate(mask) if hidden)


def _masked_figure(example):
    text = words(example["words"]) if example["words"] else ""
    shown = picture(example["picture"], "a picture with masked patches", patches(example["mask"]))
    return f"<figure>{shown}{text}</figure>"


def words(tokens: list) -> str:
    """A text as the model reads it: hidden tokens as blocks (hover: what they were), others to predict underlined."""
    spaced = any(read.startswith(" ") or was.startswith(" ") for read, _, was in tokens)
    parts = []
    for read, chosen, was in tokens:
        gap = "" if spaced and not was.startswith(" ") or was.startswith("##") else " "
        was, read = was.strip().removeprefix("##"), read.strip().removeprefix("##")
        if not chosen:
            parts.append(gap + escape(read))
        elif read:
            note = "left as it is, to be predicted all the same" if read == was else f"in the place of: {was}"
            parts.append(f'{gap}<span class="swap" title="{escape(note, quote=True)}">{escape(read)}</span>')
        else:
            block = "x" * max(2, len(was))
            parts.append(f'{gap}<span class="hid" title="{escape(was, quote=True)}">{block}</span>')
    return f'<p class="words">{"".join(parts).strip()}</p>'


def table(rows: list, text_columns=(), floor_names=("chance",)) -> str:
    """Rows of text, the first the heading. ``text_columns`` run left; rows named in ``floor_names`` are set back."""
    kind = lambda i: ' class="text"' if i in text_columns else ""
    head = "".join(f"<th{kind(i)}>{escape(c)}</th>" for i, c in enumerate(rows[0]))
    cells = lambda row: "".join(f"<td{kind(i)}>{escape(str(c))}</td>" for i, c in enumerate(row))
    body = "".join(f'<tr{" class=floor" if row[0] in floor_names else ""}>{cells(row)}</tr>' for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
