"""RoBERTa as Hugging Face stores it, to the names of the RoBERTa encoder, and back."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from xtoolkit.weights.files import matches
from xtoolkit.weights.parts import block_of, only, output_layer_read
from xtoolkit.weights.report import ConversionError, Report

DROPPED = {
    "roberta.pooler.*": "a pooler that nothing here reads",
    "*embeddings.position_ids": "a count from 0, computed here",
    "*embeddings.token_type_ids": "zeros, computed here",
    "classifier.*": "a classifier",
}
TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


def from_roberta(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """RoBERTa's tensors under the names of the recipe's RoBERTa encoder, without a prefix: what its own ``init`` takes.

    Reads files of ``RobertaModel`` and of ``RobertaForMaskedLM``; the output layer is taken over if a loss of the recipe reads
    it, and dropped otherwise.

    Args:
        state: {name: tensor}.
        recipe: checked.
        allow: patterns of second copies of a tied tensor that are dropped where they differ from the first.

    Returns:
        (state, report). Unknown names are taken over: whether all fit the encoder is for ``writing.verify`` to ask.

    Raises:
        ConversionError: the recipe builds no RoBERTa, or tied tensors differ.
    """
    with_head = output_layer_read(recipe, only(recipe, "RoBERTa"))
    report, result, problems = Report(), {}, []
    full = {name if name.startswith(("roberta.", "lm_head.", "classifier.")) else f"roberta.{name}": name for name in state}
    for name, given in full.items():
        tensor, first = state[given], TIED.get(name)
        why = next((why for pattern, why in DROPPED.items() if fnmatchcase(name, pattern)), None)
        if why is not None:
            report.dropped[given] = why
        elif name.startswith("lm_head.") and not with_head:
            report.dropped[given] = "this recipe builds no loss that reads the output layer (MLM)"
        elif first in full:
            if torch.equal(tensor, state[full[first]]):
                report.dropped[given] = f"the same tensor as {first}, to which RoBERTa ties it"
            elif matches(name, allow):
                report.dropped[given] = f"differs from {first}, to which RoBERTa ties it; allowed"
            else:
                problems.append(f"not tied: {given} differs from {first}; RoBERTa has one tensor under both names")
        else:
            result[first or name] = tensor
            report.renamed[given] = first or name
    if problems:
        raise ConversionError("\n".join(["not a RoBERTa whose output layer is tied:", *(f"  {p}" for p in problems)]))
    return result, report


def to_roberta(state: Mapping[str, Tensor], recipe) -> tuple[dict[str, Tensor], dict, Report]:
    """The RoBERTa encoder's tensors for Hugging Face, and the ``config.json`` beside them.

    A folder with both opens as ``RobertaForMaskedLM.from_pretrained(FOLDER)`` where the output layer is among them, else as
    ``RobertaModel.from_pretrained(FOLDER, add_pooling_layer=False)``.

    Args:
        state: the encoder's own names.
        recipe: says its sizes.
    """
    block = block_of(recipe, only(recipe, "RoBERTa"))
    head = any(name.startswith("lm_head.") for name in state)
    config = {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM" if head else "RobertaModel"],
        "vocab_size": block["vocab_size"], "hidden_size": block["width"], "num_hidden_layers": block["layers"],
        "num_attention_heads": block["heads"], "intermediate_size": int(block["width"] * block["ffn_ratio"]),
        "max_position_embeddings": block["max_positions"], "type_vocab_size": 1, "hidden_act": "gelu",
        "hidden_dropout_prob": block["dropout"], "attention_probs_dropout_prob": block["dropout"],
        "layer_norm_eps": block["layer_norm_eps"], "initializer_range": block["init_std"], "pad_token_id": block["pad_id"],
        "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True,
    }
    return dict(state), config, Report(renamed={name: name for name in state})
