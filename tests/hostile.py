"""What hostile files are made of: pictures, tars with any kind of member, a pickle that shows whether it was run."""

import io
import tarfile

from PIL import Image


class Runs:
    """A pickle of this writes a file when it is loaded by a reader that lets it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def jpeg(size=(40, 30), kind="JPEG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, kind)
    return data.getvalue()


def tar(path, members) -> str:
    """Writes a tar of (name, bytes) and of TarInfos."""
    with tarfile.open(path, "w") as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            out.addfile(info, io.BytesIO(member[1]))
    return str(path)


def link(name, target, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def outsiders(folder) -> list:
    """Members that would write, or read, outside: each a picture's name."""
    return [("../up.jpg", jpeg()), (f"{folder}/absolute.jpg", jpeg()), ("a/../../up2.jpg", jpeg()),
            link("sym.jpg", "/etc/passwd"), link("hard.jpg", "../../secret", tarfile.LNKTYPE),
            link("pipe.jpg", "", tarfile.FIFOTYPE), link("device.jpg", "", tarfile.CHRTYPE)]


def tiny_tokenizer(folder):
    """A byte-level BPE of a few words, saved in a folder and loaded."""
    import tokenizers

    from xtoolkit.data.text import load_tokenizer
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red dog"] * 9, vocab_size=270,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))
