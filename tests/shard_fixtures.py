"""Tiny shards, a byte-level BPE tokenizer, and datasets over them."""

import io
import json
import tarfile

import pytest
from PIL import Image

from xtoolkit.data.masking import ImageMask, TextMask

WORDS = ("a red blue green dog cat ball tree on the left right of two three big small picture with grass sky under "
         "over").split()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A folder with the tokenizer.json of a small byte-level BPE whose rare words are several tokens."""
    import tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS)] * 50 + ["Dog, cat. Two trees!"], vocab_size=320, min_frequency=20,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from xtoolkit.data.text import load_tokenizer
    return load_tokenizer(str(tokenizer_folder))


def jpeg(seed: int, width: int = 48, height: int = 40) -> bytes:
    """A picture whose colours tell its number: (7, 5, 3) * seed modulo 256, a white dot at the left top."""
    image = Image.new("RGB", (width, height), (7 * seed % 256, 5 * seed % 256, 3 * seed % 256))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def write_tar(path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample(n: int, **meta) -> list[tuple[str, bytes]]:
    return [(f"{n:06d}.jpg", jpeg(n)), (f"{n:06d}.json", json.dumps(meta).encode())]


@pytest.fixture
def shards():
    """The functions that write shards."""
    class Make:
        tar, sample, jpeg = staticmethod(write_tar), staticmethod(sample), staticmethod(jpeg)
    return Make


@pytest.fixture
def pair_shards(tmp_path):
    """Two tars, 12 and 9 samples with two captions each."""
    for shard, numbers in enumerate((range(12), range(12, 21))):
        members = [m for n in numbers
                   for m in sample(n, image_id=n, captions=[f"a red dog {n}", f"two small cat with ball {n}"])]
        write_tar(tmp_path / f"pairs-{shard:05d}.tar", members)
    return str(tmp_path / "pairs-*.tar")


@pytest.fixture
def region_shard(tmp_path):
    """Ten pictures with 1 to 4 regions; the even ones have a caption of the whole as well."""
    members = []
    for n in range(10):
        regions = [{"box": [4 * i, 3 * i, 16, 12], "caption": f"ball {n} {i}", "attributes": ["big"]}
                   for i in range(1 + n % 4)]
        members += sample(n, regions=regions, **({"captions": [f"picture {n}"]} if n % 2 == 0 else {}))
    return write_tar(tmp_path / "regions.tar", members)


@pytest.fixture
def text_file(tmp_path):
    lines = [json.dumps({"text": " ".join(WORDS[:1 + n % 20])}) for n in range(50)]
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


SIZES = {"image_size": 32, "patch_size": 8}
MASK, IMAGE_MASK = TextMask(0.5, 6), ImageMask(6, 4)


@pytest.fixture
def datasets(tokenizer, pair_shards, region_shard, text_file):
    """One dataset a stream, with all masks."""
    from xtoolkit.data.datasets import Images, Pairs, Regions, Text
    views = frozenset({"mask_text", "mask_image"})
    return {
        "text": Text(tokenizer, views, path=text_file, max_tokens=16, mask=MASK, window=4),
        "image": Images(**SIZES, views=views, path=pair_shards, image_mask=IMAGE_MASK),
        "pairs": Pairs(tokenizer, **SIZES, views=views, path=pair_shards, max_tokens=12, mask=MASK,
                       image_mask=IMAGE_MASK),
        "region": Regions(tokenizer, **SIZES, views=frozenset({"mask_text"}), path=region_shard, max_tokens=12,
                          mask=MASK, max_per_image=3),
    }


@pytest.fixture
def tars(tmp_path, shards):
    """A folder with ten tars, each of 6 pictures with a caption and a region or two."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(10):
        regions = [{"box": [1, 1, 9, 9], "caption": "dog"}, {"box": [2, 2, 20, 9], "caption": "cat"}]
        members = [m for n in range(6 * shard, 6 * shard + 6)
                   for m in shards.sample(n, image_id=n, captions=[f"a dog {n}"], regions=regions[:1 + n % 2])]
        shards.tar(folder / f"{shard:02d}.tar", members)
    return folder
