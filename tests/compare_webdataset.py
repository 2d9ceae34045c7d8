"""Reads the same tars with this toolkit and with webdataset, in turns, and prints the ratio of their rates.

    pip install webdataset
    OMP_NUM_THREADS=1 python tests/compare_webdataset.py [--rounds 9]

2,000 JPEGs of 500 x 375 pixels in two tars, made at the start. Both read in this process, without workers, decode with the same
function (crop, resize to 224, normalise) and stack batches of 50; so what differs is reading: an index and a permutation of
all samples here, a pass from front to back with a buffer of 1,000 there. Rounds alternate; the first of each is thrown away.
"""

import argparse
import io
import os
import random
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PICTURES, SHARDS, BATCH = 2000, 2, 50
AUGMENT = {"crop_scale": [0.5, 1.0], "flip": 0.5, "randaugment": None}


def write(folder: Path) -> list[str]:
    """The tars, of pictures with the detail of photographs: noise at four scales over a gradient of colours."""
    rng, files = np.random.default_rng(0), []
    for shard in range(SHARDS):
        files.append(str(folder / f"train-{shard:05d}.tar"))
        with tarfile.open(files[-1], "w") as tar:
            for n in range(PICTURES // SHARDS):
                picture = np.zeros((375, 500, 3))
                for scale in (8, 24, 72, 216):
                    noise = rng.integers(0, 256, (375 // scale + 2, 500 // scale + 2, 3), dtype=np.uint8)
                    picture += np.asarray(Image.fromarray(noise).resize((500, 375), Image.BILINEAR)) / 4
                data = io.BytesIO()
                Image.fromarray(picture.astype(np.uint8)).save(data, "JPEG", quality=85)
                for name, content in ((f"{n:06d}.jpg", data.getvalue()), (f"{n:06d}.json", b'{"caption": "noise"}')):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return files


def reader(files: list[str]):
    """A function that reads the next epoch of ``files`` with this toolkit, and the processor of its pictures."""
    from xtoolkit.data.datasets import Images
    from xtoolkit.data.images import Augment
    from xtoolkit.data.loader import Loader

    dataset = Images(224, 16, path=files, augment=Augment(**AUGMENT))
    loader, visits = Loader("image", dataset, BATCH, 0, 0), iter(range(10**9))

    def epoch() -> int:
        return sum(len(loader.at(next(visits)).image.pixels) for _ in range(PICTURES // BATCH))

    return epoch, dataset.images


def webdataset_reader(files: list[str], process):
    """A function that reads an epoch of ``files`` with webdataset."""
    import webdataset

    rng = random.Random(0)

    def bad(kind, detail):
        return ValueError(f"{kind}: {detail}")

    def epoch() -> int:
        read, waiting = 0, []
        for sample in webdataset.WebDataset(files, shardshuffle=SHARDS).shuffle(1000):
            waiting.append(process(sample["jpg"], sample["__key__"], rng, bad).pixels)
            if len(waiting) == BATCH:
                read += len(torch.stack(waiting))
                waiting = []
        return read

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder))
        ours, process = reader(files)
        readers = {"xtoolkit": ours, "webdataset": webdataset_reader(files, process)}
        seconds = {name: [] for name in readers}
        for turn in range(args.rounds + 1):
            for name, epoch in readers.items():
                began, used = time.perf_counter(), time.process_time()
                read = epoch()
                assert read == PICTURES, f"{name} read {read} of {PICTURES}"
                if turn:
                    seconds[name].append((time.perf_counter() - began, time.process_time() - used))
    print(f"{os.cpu_count()} cores, one thread, {args.rounds} rounds of {PICTURES:,} pictures each, in turns")
    for name, rounds in seconds.items():
        wall, used = (statistics.median(values) for values in zip(*rounds))
        print(f"{name:12} {PICTURES / wall:7.0f} pictures/s, {PICTURES / used:7.0f} a processor second (medians)")
    ratios = [there[0] / here[0] for here, there in zip(*seconds.values())]
    print(f"ratio: {statistics.median(ratios):.2f} by the median of the rounds, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
