"""From a folder or a file to a trained model that answers: which weights, which recipe, which tokenizer."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import torch

from xtoolkit import recipe as recipes
from xtoolkit.recipe import config as configs
from xtoolkit.recipe.config import Config
from xtoolkit.data import paths
from xtoolkit.data.text import Tokenizer, load_tokenizer
from xtoolkit.weights.files import load_strictly
from xtoolkit.engine import checkpoint
from xtoolkit.engine.initial import read_model_weights
from xtoolkit.recipe.folder import CONFIG, FOLDER, PLUGINS, RECORD, TOKENIZER, best, chosen, latest, told
from xtoolkit.recipe.plugins import find, import_components
from xtoolkit.weights.hub import missing
from xtoolkit.model import Model
from xtoolkit.inference.pretrained import Pretrained
from xtoolkit.registry import ConfigError

TAKES = ("xtoolkit.load takes a run's output folder, a checkpoint folder in it, or a file of a whole model's weights "
         "(.safetensors) with its recipe beside it")


def load(path, config=None, tokenizer=None, device: str = "auto",
         precision: Literal["bf16", "fp32"] | None = None, trust_plugins: bool = False,
         giving=lambda ability: []) -> Pretrained:
    """See ``xtoolkit.load``; ``giving``: see ``Pretrained``."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: {path!r} is neither a string nor a path; {TAKES}")
    place = _device(device)
    weights, folder = _find(Path(path).expanduser())
    recipe = _recipe(weights, folder, config, trust_plugins)
    if precision is not None:
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision: {precision!r} is neither bf16 nor fp32")
        recipe.train = dataclasses.replace(recipe.train, precision=precision)
    words = _tokenizer(tokenizer, folder, recipe)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, but not from the caller's generator
        model = Model(recipe)
    model.check_tokenizer(words)
    state, origin = read_model_weights(weights)
    # What only ever served as a target may be left out of a file: nothing that is asked here reads it.
    targets = tuple(f"encoders.{name}.*" for name, encoder in model.encoders.items() if not encoder.TRAINABLE)
    load_strictly(model, model.fit(state), origin, may_miss=targets,
                  mend="give the recipe that these weights were made with: xtoolkit.load(path, config='recipe.yaml')")
    return Pretrained(model.to(place), words, folder, giving)


def _device(given) -> torch.device:
    """The device that a model is to be put on. Raises ValueError for one that is none, or that this machine lacks."""
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if given == "auto" else given)
    except (RuntimeError, TypeError) as error:  # torch's words list twenty kinds
        raise ValueError(f"device: {given!r} is none; give auto, cpu, cuda or cuda:1, ...") from error
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device: {given!r}: this machine has {count or 'no'} CUDA device{'s' * (count != 1)}; give auto or cpu")
    return found


def _find(path: Path) -> tuple[Path, Path]:
    """What holds the tensors, a checkpoint folder or a file; and the folder that may hold recipe and tokenizer."""
    if path.is_file():
        return path, path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder; {TAKES}")
    if (path / RECORD).is_file() or (path / ".metadata").is_file():
        return path, path.parent.parent if path.parent.name == FOLDER else path
    run = path.parent if path.name == FOLDER else path
    if found := chosen(run):
        if best(run):
            print(f"weights of {told(run, found)}", file=sys.stderr)
        return found, run
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0], path
    raise checkpoint.CheckpointError(f"{path}: {_instead(path, files)}; {TAKES}")


def _instead(path: Path, files: list) -> str:
    """What a folder is that nothing can be loaded from."""
    if files:
        return f"several files of weights ({', '.join(f.name for f in files)}): name the one"
    if (path / CONFIG).is_file():
        return "a run without a whole checkpoint: one is written every `train.checkpoint_every` steps and at the end"
    inside = sorted(p.name for p in path.iterdir())
    runs = [name for name in inside if (path / name).is_dir() and latest(path / name)]
    if runs:
        return f"not a run itself, but it holds some: {', '.join(runs)}"
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    return f"neither a run nor a checkpoint; it holds {shown or 'nothing'}"


def _recipe(weights: Path, folder: Path, given, trust: bool) -> recipes.Recipe:
    """The recipe: the one given, else that in the checkpoint's record, else ``config.yaml`` beside the weights."""
    kept = {}
    if given is not None:
        source, beside = configs.load(given), Path(given).resolve().parent
    elif weights.is_dir():
        record = checkpoint.read_record(weights)
        source, beside = Config(record["config"], {(): str(weights / RECORD)}), folder
        kept = record["plugins"] if "plugins" in record else {}
    elif (folder / CONFIG).is_file():
        source, beside = configs.load(folder / CONFIG), folder
    else:
        read_model_weights(weights)  # what is no file of weights says so
        raise ConfigError(f"{weights}: weights alone do not say what model they are of; give its recipe, "
                          f"xtoolkit.load(path, config='recipe.yaml'), or put it beside them as {CONFIG}")
    copies = folder / PLUGINS
    if not trust:
        _refuse_plugins(source, beside, copies, kept)
    try:
        return recipes.checked(source, str(beside), missing_files=False, copies=copies, kept=kept)
    except ConfigError as error:  # a recipe of another version of the toolkit, plugins that lie nowhere
        if given is not None:
            raise
        raise ConfigError(error.problems, hint="give the recipe itself, beside which its plugins are found: "
                                               "xtoolkit.load(path, config='recipe.yaml')") from error


def _refuse_plugins(source: Config, beside: Path, copies: Path, kept: dict) -> None:
    """Raises ConfigError where a recipe names plugins that are not imported already: loading would run their code."""
    import_components()
    strange = []
    for entry in recipes.named_plugins(source):
        try:
            plugin = find(entry, beside, copies, kept)
        except ConfigError:
            continue  # nothing of it can be run; the check of the recipe says so
        if not plugin.imported():
            strange.append(f"{entry} ({plugin.path})")
    if strange:
        raise ConfigError(f"{source.where('plugins')}: this model needs plugins, and loading it would run their code: "
                          f"{', '.join(strange)}. Read them; where you trust them: xtoolkit.load(path, trust_plugins=True)")


def _tokenizer(given, folder: Path, recipe) -> Tokenizer:
    """The tokenizer: that which is given, else the one in the folder, else the one that the recipe names."""
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return load_tokenizer(str(given))
    if (folder / TOKENIZER).is_dir():
        return load_tokenizer(str(folder / TOKENIZER))
    name = recipe.tokenizer
    if problem := paths.problem(name) if "://" in name else missing(name, "tokenizer"):
        raise ConfigError(f"{folder}: no `{TOKENIZER}` folder here, and the tokenizer that the recipe names cannot be "
                          f"had ({problem.partition(';')[0]}); give one: xtoolkit.load(path, tokenizer=FOLDER), a folder "
                          "with tokenizer.json")
    return load_tokenizer(name)
