"""What lies beside GPT-2's weights must be of the same model: support for chapter 5.

Two models can have the same shapes and be different: the number of heads, the
activation and some scalings stand in `config.json` alone, the vocabulary in
`vocab.json`. With a wrong one a model loads, writes, and writes nonsense.

>>> settings_problem({"model_type": "gpt2", "n_head": 12}, {"n_heads": 12})
''
>>> settings_problem({"model_type": "gpt2", "n_head": 4}, {"n_heads": 12})
'The settings ask for n_head=4, but the model to load into has 12.'
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpe import byte_alphabet
from vocabulary_files import read_json

GPT2_MASKS = (".attn.bias", ".attn.masked_bias")  # endings of names in old files

# The settings that no shape tells, and what `GPTModel` computes; the first is usual.
_COMPUTED = {
    "layer_norm_epsilon": (1e-5,),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def settings_problem(settings: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """What to say if settings are those of another model than `cfg`; "" if they fit.

    Args:
        settings: the content of `config.json`; what it leaves out is as in GPT-2.
        cfg: a `GPTConfig`, or a mapping that has "n_heads".
    """
    kind = settings.get("model_type", "gpt2")
    if kind != "gpt2":
        return (
            f"The settings are of model type {kind!r}, not 'gpt2': keep the "
            "files of each model in a folder of their own."
        )
    heads = settings.get("n_head", cfg["n_heads"])
    if heads != cfg["n_heads"]:
        return (
            f"The settings ask for n_head={heads!r}, but the model to load into "
            f"has {cfg['n_heads']}."
        )
    for name, possible in _COMPUTED.items():
        if name == "tie_word_embeddings" and not cfg.get("tie_weights", True):
            continue  # a model with a head of its own takes either
        value = settings.get(name, possible[0])
        if value not in possible:
            return (
                f"The settings ask for {name}={value!r}, but GPTModel has "
                f"{possible[0]!r}: another model, for which its code would have to be "
                "changed."
            )
    return ""


def beside_problem(path: Path, cfg: Mapping[str, Any]) -> str:
    """`settings_problem` of the `config.json` beside weights; "" if there is none.

    Args:
        path: of the weights, a file or a folder.
        cfg: as for `settings_problem`.
    """
    file = _beside(path, "config.json")
    if not file.exists():
        return ""
    problem = settings_problem(read_json(file), cfg)
    return f"config.json beside it: {problem}" if problem else ""


def check_vocabulary_beside(path: Path, tokenizer: Any) -> None:
    """Raise if `vocab.json` beside weights is not the vocabulary of a tokenizer.

    Args:
        path: of the weights, a file or a folder.
        tokenizer: with tiktoken's `decode_single_token_bytes` and `n_vocab`.
    """
    file = _beside(path, "vocab.json")
    if not file.exists():
        return
    alphabet, found = byte_alphabet(), read_json(file)
    for token, i in found.items():
        if not isinstance(i, int) or not 0 <= i < tokenizer.n_vocab:
            same = False
        elif set(token) <= alphabet.keys():
            same = _spelled(tokenizer, i) in (
                bytes(alphabet[character] for character in token),
                token.encode(),  # a special token
            )
        else:
            same = _spelled(tokenizer, i) == token.encode()
        if not same:
            raise ValueError(
                f"{file} has the token {token!r} under {i!r}, which GPT-2's vocabulary "
                "has not: a model with a vocabulary of its own, so load_pretrained "
                "cannot give its tokenizer; make the model with load_weights_into_gpt."
            )


def _spelled(tokenizer, i):
    try:
        return tokenizer.decode_single_token_bytes(i)
    except KeyError:
        return None


def _beside(path, name):
    return (path if path.is_dir() else path.parent) / name
