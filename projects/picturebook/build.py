"""Builds the PictureBook sample pack from pinned public packages, or checks that the committed one can be rebuilt.

pip install -e .[sample-build]
python -m projects.picturebook.build                  writes xtoolkit/prepare/pack/
python -m projects.picturebook.build --check          rebuilds in memory and compares with the committed MANIFEST.json
python -m projects.picturebook.build --scenes 60000 --output /data/picturebook-large
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from projects.picturebook import pack as packing
from projects.picturebook.sources import DEFAULT_CACHE, Sources

COMMITTED = Path(__file__).resolve().parents[2] / "xtoolkit" / "prepare" / "pack"


def main() -> int:
    """Builds the archive from the arguments; 0 where all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=COMMITTED, help="folder for the archive, MANIFEST.json and NOTICE"
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the downloaded packages")
    parser.add_argument("--scenes", type=int, help="pictures for training (default 1600); writes to --output as usual")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, compare with the MANIFEST.json in --output"
    )
    given = parser.parse_args()
    if given.scenes and given.output == COMMITTED:
        parser.error("--scenes needs --output: the committed pack keeps its size")
    scenes = {**packing.SCENES, "train": given.scenes or packing.SCENES["train"]}
    pack = packing.build(Sources(given.cache), scenes)
    if given.check:
        return check(pack, given.output / "MANIFEST.json")
    about = packing.write(pack, given.output)
    print(json.dumps(about["counts"], indent=1))
    print(
        f"{given.output / about['archive']}: {about['size'] / 1e6:.2f} MB, {len(about['files'])} files, "
        f"sha256 {about['sha256']}"
    )
    return 0


def check(pack: packing.Pack, path: Path) -> int:
    """0 if a fresh build has the files that the manifest names, else 1 and the list of differences.

    Other versions of Pillow's libjpeg or of resvg may give a picture other bytes: then what it shows is compared.
    """
    committed = json.loads(path.read_text(encoding="utf-8"))
    fresh = packing.manifest(pack, packing.archive(pack))
    names = sorted(committed["files"].keys() | fresh["files"].keys())
    different = [name for name in names if committed["files"].get(name) != fresh["files"].get(name)]
    if not different and committed["sha256"] == fresh["sha256"]:
        print(f"{len(names)} files and the archive are the same, byte for byte")
        return 0
    with tarfile.open(path.with_name(committed["archive"])) as tar:
        wrong = [name for name in different if not same_picture(name, pack, tar)]
    for name in wrong[:50]:
        print(f"differs: {name}")
    print(
        f"{len(names) - len(different)} of {len(names)} files are the same, {len(different) - len(wrong)} show the "
        f"same, {len(wrong)} differ. Built with {fresh['built_with']}, committed with {committed['built_with']}"
    )
    return 1 if wrong else 0


def same_picture(name: str, pack: packing.Pack, tar: tarfile.TarFile) -> bool:
    """Whether a file is a picture in both packs and differs by less than two grey levels a pixel."""
    if not name.endswith(".jpg") or name not in pack.files or name not in tar.getnames():
        return False
    images = [Image.open(io.BytesIO(data)) for data in (pack.files[name], tar.extractfile(name).read())]
    if images[0].size != images[1].size:
        return False
    return max(ImageStat.Stat(ImageChops.difference(*images)).mean) < 2


if __name__ == "__main__":
    sys.exit(main())
