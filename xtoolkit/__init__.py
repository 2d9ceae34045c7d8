"""xtoolkit: modular pretraining, fine-tuning and ablation of vision-language foundation models."""

from xtoolkit.version import VERSION as __version__  # noqa: F401


def load(path, *, config=None, tokenizer=None, device="auto", precision=None, trust_plugins=False):
    """A trained model with its tokenizer and image transform, ready to answer: docs/inference.md.

    ``encode_image``, ``encode_text``, ``similarity``, ``match``, ``ground``, ``attend`` and what else the model was trained for
    (``abilities``) compute what the recipe's evaluations do. Nothing that the model was trained from is needed: no data, no
    ``init`` weights, no network, not the working folder.

    Args:
        path: a run's output folder (its best checkpoint counts where `train.keep_best` kept one, else its newest), a
            checkpoint folder in it, a file of a whole model's weights (.safetensors, or torch's, of tensors alone), or a
            folder with one such file.
        config: path of the recipe; None: the one in the checkpoint, or `config.yaml` beside the file.
        tokenizer: a folder or file of one, a hub name, or a Tokenizer; None: the folder `tokenizer` in the run's folder
            or beside the file, else what the recipe names.
        device: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
        precision: bf16 (autocast) or fp32; None: what the recipe trains and evaluates in.
        trust_plugins: run the code of the plugins that the model's recipe names. Without it they must be imported already.

    Returns:
        xtoolkit.inference.pretrained.Pretrained

    Raises:
        FileNotFoundError: nothing is at ``path``.
        ValueError: a device that is none or not there; a folder of another thing or damaged files (CheckpointError,
            WeightsError); a recipe that cannot be read, plugins that are not trusted, or a tokenizer that is not there
            (ConfigError); weights of another recipe or with nan in them, each name listed (WeightsError).
    """
    from xtoolkit.cli import recipes  # only here: importing the package stays light
    from xtoolkit.inference import loading
    return loading.load(path, config, tokenizer, device, precision, trust_plugins, recipes.giving)


def build(recipe, folder="."):
    """A recipe with all that it names, built and ready to be looked at, trained and evaluated: docs/python.md.

    Args:
        recipe: a mapping, the path of a YAML file (or one of `xtoolkit list recipes`), or YAML as text.
        folder: what paths in the recipe are relative to.

    Returns:
        xtoolkit.engine.run.Run: ``model``, with the weights to start from; ``batch(stream)``, ``losses(stream, batch)``,
        ``features(batch)``, ``plan()``, ``train()``, ``evaluate()``. Nothing is written before ``train``.

    Raises:
        ConfigError: every mistake of the recipe: by file and line, in a mapping by its dotted key. Data are looked for
            when they are asked for.
    """
    from xtoolkit.cli import recipes  # only here: importing the package stays light
    return recipes.build(recipe, folder)
