"""The image-text shards in img2dataset's layout: noisy Open Clip Art titles and clean picture-word pairs."""

import hashlib
import html
import io
import json
import re
from collections.abc import Iterator

from PIL import Image

from .drawings import Concept, Drawings, cut, render
from .language import Language
from .seeded import rng
from .sources import Sources

CLIPART, PER_WORD = 800, 3
SIDE, QUALITY = 88, 75
_ROOT = "usr/share/openclipart/svg/"
# folders that show things; the others hold interface icons, arrows, flags, signs and patterns
_FOLDERS = re.compile(
    r"(animals|buildings|computer/hardware|containers|education|electronics|food|geography/astronomy|office|plants|"
    r"recreation/(art|games|holiday|music|party|sports|toys)|science|tools/(?!weapons)|"
    r"transportation/(boating|vehicles)|signs_and_symbols/weather|unsorted)/"
)
# inkscape's units before 0.92: 90 dots an inch
_UNITS = {"": 1.0, "px": 1.0, "pt": 1.25, "mm": 3.5433, "cm": 35.433, "in": 90.0}
# what has no place in a sample (violence, drugs, nudity, hate), and titles of series instead of pictures
_UNWANTED = re.compile(
    r"clip ?art|hash|silhouet|map of|pattern|diagram|\bcard\b|road ?sign|nazi|swastika|stripper|"
    r"nude|naked|sex|gun|pistol|"
    r"rifle|weapon|bomb|drug|marijuana|cannabis|cigar|"
    r"smok|kill|blood|skull|dead|death|devil|satan|hell|bikini|lingerie|religio|jesus|cross|flag|logo|"
    r"button|arrow|icon|banner|template|border|frame|babe|porn|hitler|terror|"
    r"suicid|hang|ammo|grenade|knife|siringa|syringe|army|soldier",
    re.I,
)


def clipart_pairs(sources: Sources, count: int = CLIPART) -> Iterator[tuple[str, Image.Image, str]]:
    """(path, picture on white, caption as noisy as the web's) of `count` Open Clip Art drawings."""
    paths = [path for path in sources.members("openclipart") if path.startswith(_ROOT) and path.endswith(".svg")]
    rng("openclipart").shuffle(paths)
    seen: set[str] = set()
    drawn: set[bytes] = set()
    for path in paths:
        raw = sources.read("openclipart", path)
        if len(raw) > 200_000 or _UNWANTED.search(path, len(_ROOT)) or not _FOLDERS.match(path, len(_ROOT)):
            continue
        svg = raw.decode("utf-8", "replace")
        caption = clipart_caption(svg, path)
        if caption is None or _UNWANTED.search(caption) or caption.lower() in seen:
            continue
        picture = clipart_picture(svg)
        if picture is None or picture.tobytes() in drawn:
            continue
        drawn.add(picture.tobytes())
        seen.add(caption.lower())
        yield path.removeprefix(_ROOT), picture, caption
        if len(seen) == count:
            return
    raise RuntimeError(f"only {len(seen)} of {count} Open Clip Art drawings are usable")


def clipart_caption(svg: str, path: str) -> str | None:
    """Title, and now and then the description or the keywords, as the artist wrote them; None if nothing is said."""
    title = clean(_first(r"<dc:title>(.*?)</dc:title>", svg))
    about = clean(_first(r"<dc:description>(.*?)</dc:description>", svg))
    block = _first(r"<dc:subject>(.*?)</dc:subject>", svg)
    keywords = [clean(word) for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", block, re.S)]
    keywords = [word for word in keywords if word and len(word) < 30][:4]
    if len(re.findall(r"[A-Za-z]{3,}", title)) < 1 or len(title) > 120:
        return None
    random = rng("clipart", path)
    if len(about.split()) >= 4 and len(about) < 160 and random.random() < 0.6:
        return about
    if keywords and random.random() < 0.5:
        return f"{title} ({', '.join(keywords)})"
    return title


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.S)
    return found.group(1) if found else ""


def clean(text: str) -> str:
    """Entities resolved (they were escaped twice), tags, addresses, '#', '|' and digits dropped, spaces collapsed."""
    text = html.unescape(html.unescape(text))
    if "\u00c3" in text:
        text = text.encode("latin-1", "ignore").decode("utf-8", "ignore")  # UTF-8 that was once read as Latin-1
    text = re.sub(r"<[^>]*>|https?://\S+|\S+@\S+", " ", text)
    text = re.sub(r"[#|_\d]+", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s+([,.;:!?)])", r"\1", re.sub(r"\(\s*\)|\[\s*\]", "", text)).strip(" -,;:/")


def clipart_picture(svg: str) -> Image.Image | None:
    """The drawing on white, longer side SIDE, or None if it is blank, thin or does not render."""
    try:
        image = cut(render(with_view_box(svg), 160))
    except ValueError:  # resvg's answer to an SVG without a size or with broken XML
        return None
    w, h = image.size
    if min(w, h) < 24 or max(w, h) > 4 * min(w, h):
        return None
    factor = SIDE / max(w, h)
    image = image.resize((max(1, round(w * factor)), max(1, round(h * factor))), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", image.size, "white")
    picture.paste(image, (0, 0), image)
    darkest, lightest = picture.convert("L").getextrema()
    return picture if lightest - darkest > 60 else None


def with_view_box(svg: str) -> str:
    """Replaces the root's width and height by a viewBox where it has none; else resvg fails or crops."""
    svg = svg[max(0, svg.find("<svg")) :] if "<!ENTITY" not in svg else svg
    root = re.search(r"<svg\b[^>]*>", svg)
    if root is None or re.search(r"\bviewBox\s*=", root.group()):
        return svg
    sizes = [re.search(rf'\s{name}\s*=\s*"([\d.eE+]+)\s*(\w*)"', root.group()) for name in ("width", "height")]
    if not all(sizes) or any(size.group(2) not in _UNITS for size in sizes):
        return svg
    width, height = (float(size.group(1)) * _UNITS[size.group(2)] for size in sizes)
    tag = re.sub(r'\s(width|height)\s*=\s*"[^"]*"', "", root.group())
    tag = tag[:4] + f' viewBox="0 0 {width:.3f} {height:.3f}"' + tag[4:]
    return svg[: root.start()] + tag + svg[root.end() :]


def icon_pairs(
    drawings: Drawings, concepts: list[Concept], language: Language
) -> Iterator[tuple[str, Image.Image, str]]:
    """(path, picture on white, "name" or "name: keywords") of the train drawings of the words of the scenes."""
    for concept in concepts:
        if not concept.scene:
            continue
        for family in concept.artists("train")[:PER_WORD]:
            random = rng("icon", concept.label, family)
            image = drawings.scaled(family, concept.label, random.randint(60, 76))
            picture = Image.new("RGB", (image.width + 8, image.height + 8), "white")
            picture.paste(image, (4, 4), image)
            name = language.bare(language.name(concept, random))
            tags = [tag for tag in concept.tags if tag.isascii() and len(tag) > 2 and tag != name]
            if tags and random.random() < 0.5:
                name = f"{name}: {', '.join(random.sample(tags, min(len(tags), 3)))}"
            yield f"{family}/{drawings.icon(family, concept.label)}", picture, name


def samples(pairs: Iterator[tuple[str, Image.Image, str]], where: str, shard: int) -> Iterator[tuple[str, bytes]]:
    """The members of one img2dataset shard: key.jpg, key.json, key.txt in that order."""
    for number, (path, picture, caption) in enumerate(pairs):
        key = f"{shard:05d}{number:04d}"
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        about = {
            "caption": caption,
            "url": f"{where}/{path}",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": picture.width,
            "height": picture.height,
            "original_width": picture.width,
            "original_height": picture.height,
            "exif": "{}",
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        }
        yield f"{key}.jpg", buffer.getvalue()
        yield f"{key}.json", json.dumps(about, ensure_ascii=False, indent=1).encode()
        yield f"{key}.txt", caption.encode()
