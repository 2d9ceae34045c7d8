"""xtoolkit: modular pretraining, fine-tuning and ablation of vision-language foundation models."""

__version__ = "0.1.0"


def load(path, *, config=None, tokenizer=None, device="auto", precision=None):
    """A trained model with its tokenizer and image transform, ready to answer: docs/inference.md.

    ``encode_image``, ``encode_text``, ``similarity``, ``match`` and ``ground`` compute what the recipe's evaluations
    do. Nothing that the model was trained from is needed: no data, no ``init`` weights, no network, not the working
    folder.

    Args:
        path: a run's output folder (its newest checkpoint counts), a checkpoint folder in it, a file of a whole
            model's weights (.safetensors, or torch's, of tensors alone), or a folder with one such file.
        config: path of the recipe; None: the one in the checkpoint, or `config.yaml` beside the file.
        tokenizer: a folder or file of one, a hub name, or a Tokenizer; None: the folder `tokenizer` in the run's folder
            or beside the file, else what the recipe names.
        device: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
        precision: bf16 (autocast) or fp32; None: what the recipe trains and evaluates in.

    Returns:
        xtoolkit.inference.pretrained.Pretrained

    Raises:
        FileNotFoundError: nothing is at ``path``.
        ValueError: a folder of another thing or damaged files (CheckpointError, WeightsError); a recipe that cannot be
            read, or a tokenizer that is not there (ConfigError); weights of another recipe, each name listed
            (WeightsError).
    """
    from xtoolkit.inference import loading  # only here: importing the package stays light
    return loading.load(path, config, tokenizer, device, precision)
