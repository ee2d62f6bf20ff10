"""What readers may well write: right answers are taken, wrong ones get a fitting word.

`test_ch04_checks.py` plants mistakes and wants a message of its own for each. Here
stand right answers written in other ways, and further wrong ones; several of those may
share a message.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ch04_checks
from course.exercises import answer
from gpt import (
    GPTConfig,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    count_parameters,
    generate_text_simple,
)
from model_config import token_positions

RIGHT, WRONG = {}, {}


# --- 4.1 ------------------------------------------------------------------------------


def on_meta(cfg):
    with torch.device("meta"):
        return TransformerBlock(cfg)


def by_shapes(cfg):
    block = on_meta(cfg)
    parts = (block.att, block.ff)
    return tuple(sum(math.prod(p.shape) for p in part.parameters()) for part in parts)


def by_names(cfg):
    counts = {"att": 0, "ff": 0, "norm1": 0, "norm2": 0}
    for name, parameter in on_meta(cfg).named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return counts["att"], counts["ff"]


def by_letters(cfg):
    D, wide = cfg["emb_dim"], 4 * cfg["emb_dim"]
    attention = 4 * D**2 + D
    if cfg["qkv_bias"]:
        attention += 3 * D
    return attention, D * wide + wide + wide * D + D


def by_the_model(cfg):
    block = GPTModel({**cfg, "vocab_size": 5, "n_layers": 1}).trf_blocks[0]
    return [count_parameters(block.att), count_parameters(block.ff)]


def by_linear_layers(cfg):
    D = cfg["emb_dim"]
    three = [nn.Linear(D, D, bias=cfg["qkv_bias"]) for _ in range(3)]
    both = nn.ModuleList([*three, nn.Linear(D, D)])
    wide = nn.ModuleList([nn.Linear(D, 4 * D), nn.Linear(4 * D, D)])
    return count_parameters(both), count_parameters(wide)


def by_state_dict(cfg):
    saved = on_meta(cfg).state_dict()
    sizes = {"att": 0, "ff": 0}
    for name, tensor in saved.items():
        part = name.split(".")[0]
        if part in sizes and not name.endswith("mask"):
            sizes[part] += tensor.numel()
    return tuple(sizes.values())


RIGHT["4_1"] = {
    "shapes": by_shapes,
    "names": by_names,
    "letters": by_letters,
    "a list": by_the_model,
    "linear layers": by_linear_layers,
    "state dict": by_state_dict,
    "numpy": lambda cfg: np.array(by_letters(cfg)),
    "numpy numbers": lambda cfg: tuple(map(np.int64, by_letters(cfg))),
    "a tensor": lambda cfg: torch.tensor(by_letters(cfg)),
    "floats": lambda cfg: tuple(map(float, by_letters(cfg))),
    "config object": lambda cfg: by_letters(GPTConfig.of({**cfg, "drop_rate": 0})),
    "attributes": lambda cfg: (
        4 * cfg.emb_dim**2 + (1 + 3 * cfg.qkv_bias) * cfg.emb_dim,
        8 * cfg.emb_dim**2 + 5 * cfg.emb_dim,
    ),
}
WRONG["4_1"] = {
    "millions": (lambda cfg: tuple(n / 1e6 for n in by_letters(cfg)), "not right"),
    "with the norms, once": (
        lambda cfg: (by_letters(cfg)[0], by_letters(cfg)[1] + 4 * cfg["emb_dim"]),
        "not right",
    ),
    "four heads of matrices": (
        lambda cfg: (by_letters(cfg)[0] * cfg["n_heads"], by_letters(cfg)[1]),
        "not right",
    ),
    "a dictionary": (
        lambda cfg: dict(zip("af", by_letters(cfg))),
        "a dict of 2, not the 2 numbers",
    ),
    "a text": (lambda cfg: str(by_letters(cfg)), "not the 2 numbers"),
    "the ratio, too": (lambda cfg: (*by_letters(cfg), 2.0), "not the 2 numbers"),
    "for 768 alone": (lambda cfg: (2_360_064, 4_722_432), "not right"),
    "no biases": (
        lambda cfg: (4 * cfg["emb_dim"] ** 2, 8 * cfg["emb_dim"] ** 2),
        "lacks the bias of out_proj",
    ),
    "one layer of two": (
        lambda cfg: (by_letters(cfg)[0], by_letters(cfg)[1] // 2),
        "not right",
    ),
    "nothing": (lambda cfg: print(end=""), "None, not the 2 numbers"),
}


# --- 4.2 ------------------------------------------------------------------------------


def sizes_by_letters(cfg):
    V, S, D = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"]
    biases = 3 * D if cfg["qkv_bias"] else 0
    tied = (V + S) * D + cfg["n_layers"] * (12 * D * D + 10 * D + biases) + 2 * D
    return tied + V * D, tied, 4 * (tied + V * D) / 1024**2


def sizes_by_bytes(cfg):
    with torch.device("meta"):
        model = GPTModel({**cfg, "tie_weights": False})
        tied = GPTModel({**cfg, "tie_weights": True})
    mebibytes = sum(p.nbytes for p in model.parameters()) / 2**20
    return count_parameters(model), count_parameters(tied), mebibytes


def sizes_less_the_head(cfg):
    with torch.device("meta"):
        model = GPTModel({**cfg, "tie_weights": False})
    total = sum(p.numel() for p in model.parameters())
    return total, total - model.out_head.weight.numel(), total * 4 / 2**20


def sizes_by_config(cfg):
    cfg = GPTConfig.of(cfg) | {"tie_weights": True}
    with torch.device("meta"):
        tied = count_parameters(GPTModel(cfg))
    untied = tied + cfg["vocab_size"] * cfg["emb_dim"]
    return untied, tied, untied * torch.float32.itemsize / 2**20


def sizes_by_device_argument(cfg):
    found = []
    for tie in (False, True):
        with torch.device(torch.device("meta")):
            found.append(count_parameters(GPTModel(dict(cfg, tie_weights=tie))))
    return [*found, found[0] / 2**18]


def sizes_of_one_block(cfg):
    """Builds one block and counts it n_layers times."""
    with torch.device("meta"):
        block = count_parameters(TransformerBlock(cfg))
        model = GPTModel({**cfg, "n_layers": 1, "tie_weights": True})
    tied = count_parameters(model) + (cfg["n_layers"] - 1) * block
    untied = tied + cfg["vocab_size"] * cfg["emb_dim"]
    return untied, tied, 4 * untied / 2**20


def sizes_by_attributes(cfg):
    with torch.device("meta"):
        tied = count_parameters(GPTModel(cfg | {"tie_weights": True}))
    untied = tied + cfg.vocab_size * cfg.emb_dim
    return untied, tied, untied / 2**18


RIGHT["4_2"] = {
    "letters": sizes_by_letters,
    "bytes": sizes_by_bytes,
    "less the head": sizes_less_the_head,
    "config": sizes_by_config,
    "a list": sizes_by_device_argument,
    "one block": sizes_of_one_block,
    "numpy": lambda cfg: np.array(sizes_by_letters(cfg)),
    "rounded": lambda cfg: tuple(round(number, 2) for number in sizes_by_letters(cfg)),
    "numpy numbers": lambda cfg: tuple(map(np.float64, sizes_by_letters(cfg))),
    "copy": lambda cfg: sizes_by_letters(copy.copy(dict(cfg))),
    "attributes": sizes_by_attributes,
}
WRONG["4_2"] = {
    "float32 counts": (
        lambda cfg: torch.tensor(sizes_by_letters(cfg)).double(),
        "tied number is not right",
    ),
    "no biases": (
        lambda cfg: sizes_by_letters({**cfg, "qkv_bias": False}),
        "missing where qkv_bias is True",
    ),
    "always biases": (
        lambda cfg: sizes_by_letters({**cfg, "qkv_bias": True}),
        "untied number is not right",
    ),
    "two numbers": (lambda cfg: sizes_by_letters(cfg)[:2], "not the 3 numbers"),
    "kibibytes": (
        lambda cfg: (*sizes_by_letters(cfg)[:2], sizes_by_letters(cfg)[2] * 1024),
        "memory is not right",
    ),
    "whole mebibytes": (
        lambda cfg: (*sizes_by_letters(cfg)[:2], round(sizes_by_letters(cfg)[2])),
        "memory is not right",
    ),
    "double precision": (
        lambda cfg: (*sizes_by_letters(cfg)[:2], sizes_by_letters(cfg)[2] * 2),
        "memory is not right",
    ),
    "less both tables": (
        lambda cfg: (
            sizes_by_letters(cfg)[0],
            sizes_by_letters(cfg)[1] - cfg["vocab_size"] * cfg["emb_dim"],
            sizes_by_letters(cfg)[2],
        ),
        "one copy of the V x D weights, not both",
    ),
    "for the small one": (
        lambda cfg: (163_009_536, 124_412_160, 621.83),
        "untied number is not right",
    ),
    "texts": (lambda cfg: tuple(map(str, sizes_by_letters(cfg))), "is the text"),
}


# --- 4.3 ------------------------------------------------------------------------------


def by_module_names(cfg, embedding, attention, shortcut):
    model = GPTModel(cfg)
    rates = {"drop_emb": embedding, "dropout": attention, "drop_shortcut": shortcut}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = rates[name.split(".")[-1]]
    return model


def by_new_layers(cfg, embedding, attention, shortcut):
    model = GPTModel(cfg)
    model.drop_emb = nn.Dropout(embedding)
    for block in model.trf_blocks:
        block.att.dropout = nn.Dropout(attention)
        block.drop_shortcut = nn.Dropout(p=shortcut)
    return model


def without_a_layer_for_nothing(cfg, embedding, attention, shortcut):
    model = by_new_layers(cfg, embedding, attention, shortcut)
    for owner in model.modules():
        for name, module in owner.named_children():
            if isinstance(module, nn.Dropout) and module.p == 0:
                setattr(owner, name, nn.Identity())
    return model


def by_index(cfg, embedding, attention, shortcut):
    model = GPTModel({**cfg})
    model.drop_emb.p = embedding
    for i in range(cfg["n_layers"]):
        model.trf_blocks[i].att.dropout.p = attention
        model.trf_blocks[i].drop_shortcut.p = shortcut
    return model


def by_attributes(cfg, embedding, attention, shortcut):
    model = GPTModel({**cfg, "drop_rate": embedding})
    for i in range(cfg.n_layers):
        block = model.trf_blocks[i]
        block.att.dropout.p, block.drop_shortcut.p = attention, shortcut
    return model


def by_two_configs(cfg, embedding, attention, shortcut):
    model = GPTModel({**cfg, "drop_rate": embedding})
    other = GPTModel({**cfg, "drop_rate": shortcut})
    model.trf_blocks = other.trf_blocks
    for block in model.trf_blocks:
        block.att.dropout.p = attention
    return model


def by_apply(cfg, embedding, attention, shortcut):
    def change(module):
        if isinstance(module, GPTModel):
            module.drop_emb.p = embedding
        if isinstance(module, TransformerBlock):
            module.att.dropout.p, module.drop_shortcut.p = attention, shortcut

    return GPTModel(cfg).apply(change)


class ThreeDropouts(GPTModel):
    """A model of one's own."""

    def __init__(self, cfg, embedding, attention, shortcut):
        super().__init__(cfg)
        self.drop_emb.p = embedding
        for block in self.trf_blocks:
            block.drop_shortcut.p = shortcut
            block.att.dropout.p = attention


RIGHT["4_3"] = {
    "names": by_module_names,
    "new layers": by_new_layers,
    "identity for nothing": without_a_layer_for_nothing,
    "index": by_index,
    "attributes": by_attributes,
    "two configs": by_two_configs,
    "apply": by_apply,
    "a class": ThreeDropouts,
    "train said": lambda *given: by_index(*given).train(),
    "eval and back": lambda *given: by_index(*given).eval().train(),
    "numpy rates": lambda cfg, *rates: by_index(cfg, *map(np.float64, rates)),
    "double": lambda *given: by_index(*given).double(),
}


def one_rate_for_all(cfg, embedding, attention, shortcut):
    return GPTModel({**cfg, "drop_rate": embedding})


def with_kept_shares(cfg, *rates):
    return by_index(cfg, *(1 - rate for rate in rates))


def last_block_forgotten(cfg, *rates):
    model = by_index({**cfg, "n_layers": 2}, *rates)
    model.trf_blocks.append(TransformerBlock(cfg))
    return model


def attributes_that_nobody_reads(cfg, embedding, attention, shortcut):
    model = GPTModel(cfg)
    model.drop_emb.rate = embedding
    return model


WRONG["4_3"] = {
    "one rate": (one_rate_for_all, "on attention weights is 0.1, not the one"),
    "kept shares": (with_kept_shares, "after the embeddings is 0.9, not the one"),
    "last block": (last_block_forgotten, "block 2 has other rates than block 0"),
    "no rates": (attributes_that_nobody_reads, "still that of the config"),
    "blocks in evaluation": (
        lambda *given: [m := by_index(*given), m.trf_blocks.eval()][0],
        "in evaluation mode",
    ),
    "a config": (lambda cfg, *rates: {**cfg, "drop_rate": rates}, "not a GPTModel"),
    "blocks alone": (lambda *given: by_index(*given).trf_blocks, "not a GPTModel"),
    "embedding forgotten": (
        lambda cfg, e, a, s: by_index(cfg, cfg["drop_rate"], a, s),
        "after the embeddings is 0.3, still that of the config",
    ),
    "shortcut forgotten": (
        lambda cfg, e, a, s: by_index(cfg, e, a, cfg["drop_rate"]),
        "on the branches is 0.3, still that of the config",
    ),
    "wider": (
        lambda cfg, *rates: by_index({**cfg, "emb_dim": 24}, *rates),
        "other sizes than the config",
    ),
}


# --- 4.4 ------------------------------------------------------------------------------


def wide_enough(x):
    return x if x.dtype == torch.float64 else x.float()


def norm_by_var(x, scale, shift, eps=1e-5):
    wide = wide_enough(x)
    variance, mean = torch.var_mean(wide, dim=-1, keepdim=True, correction=0)
    return (scale * (wide - mean) / torch.sqrt(variance + eps) + shift).to(x.dtype)


def norm_by_power(x, scale, shift, eps=1e-5):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(-1, keepdim=True)
    power = (wide.pow(2).sum(-1, keepdim=True) / x.size(-1) + eps) ** -0.5
    return (wide * power * scale + shift).to(x.dtype)


def norm_always_double(x, scale, shift, eps=1e-5):
    return norm_by_var(x.double(), scale.double(), shift.double(), eps).to(x.dtype)


def norm_by_torch(x, scale, shift, eps=1e-5):
    return F.layer_norm(x, (x.shape[-1],), scale, shift, eps)


def norm_by_the_class(x, scale, shift, eps=1e-5):
    layer = LayerNorm(x.shape[-1]).to(x.dtype)
    layer.eps = eps
    with torch.no_grad():
        layer.scale.copy_(scale)
        layer.shift.copy_(shift)
        return layer(x)


def norm_in_numpy(x, scale, shift, eps=1e-5):
    array = x.double().numpy()
    array = array - array.mean(axis=-1, keepdims=True)
    array = array / np.sqrt((array**2).mean(axis=-1, keepdims=True) + eps)
    result = torch.from_numpy(array * scale.double().numpy() + shift.double().numpy())
    return result.to(x.dtype)


def norm_by_loops(x, scale, shift, eps=1e-5):
    rows = []
    for row in wide_enough(x).reshape(-1, x.shape[-1]):
        centred = row - sum(row) / len(row)
        rows.append(centred / ((centred @ centred) / len(row) + eps).sqrt())
    return (torch.stack(rows).reshape(x.shape) * scale + shift).to(x.dtype)


def norm_by_broadcasting(x, scale, shift, eps=1e-5):
    wide = wide_enough(x)
    centred = wide - wide.mean(-1)[..., None]
    spread = (centred * centred).mean(-1)[..., None].add(eps).sqrt()
    return torch.addcmul(shift.to(wide), centred / spread, scale.to(wide)).to(x.dtype)


def norm_by_std(x, scale, shift, eps=1e-5):
    wide = wide_enough(x)
    spread = wide.std(dim=-1, keepdim=True, unbiased=False)
    spread = (spread.square() + eps).sqrt()
    return (scale * ((wide - wide.mean(-1, True)) / spread) + shift).type_as(x)


def norm_by_unbiased(x, scale, shift, eps=1e-5):
    D, wide = x.shape[-1], wide_enough(x)
    variance = wide.var(dim=-1, keepdim=True) * (D - 1) / D
    out = (wide - wide.mean(dim=-1, keepdim=True)) * (variance + eps).rsqrt()
    return (out * scale + shift).to(x.dtype)


RIGHT["4_4"] = {
    "var_mean": norm_by_var,
    "power": norm_by_power,
    "always double": norm_always_double,
    "PyTorch's": norm_by_torch,
    "the class": norm_by_the_class,
    "numpy": norm_in_numpy,
    "loops": norm_by_loops,
    "broadcasting": norm_by_broadcasting,
    "std": norm_by_std,
    "corrected": norm_by_unbiased,
    "no gradients": torch.no_grad()(norm_by_power),
}


def norm_by_squares(x, scale, shift, eps=1e-5):
    """The mean of the squares minus the square of the mean."""
    wide = wide_enough(x)
    mean = wide.mean(-1, keepdim=True)
    variance = wide.square().mean(-1, keepdim=True) - mean.square()
    return (scale * (wide - mean) / (variance + eps).sqrt() + shift).to(x.dtype)


def norm_in_its_dtype(x, scale, shift, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return scale * centred / torch.sqrt(variance + eps) + shift


def norm_always_float(x, scale, shift, eps=1e-5):
    return norm_by_var(x.float(), scale.float(), shift.float(), eps)


def norm_to_the_largest(x, scale, shift, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return scale * centred / (centred.abs().amax(-1, keepdim=True) + eps) + shift


def norm_by_rms(x, scale, shift, eps=1e-5):
    return scale * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() + shift


def norm_with_median(x, scale, shift, eps=1e-5):
    centred = x - x.median(dim=-1, keepdim=True).values
    return scale * centred / (x.var(-1, False, keepdim=True) + eps).sqrt() + shift


def norm_in_float32(x, scale, shift, eps=1e-5):
    """Goes back to the dtype of x at the end, as if nothing had been lost."""
    return norm_always_float(x, scale, shift, eps).to(x.dtype)


WRONG["4_4"] = {
    "float32 on the way": (norm_in_float32, "right to a few digits only"),
    "half the digits": (
        lambda x, scale, shift, eps=1e-5: (
            norm_by_var(x, scale, shift, eps).half().to(x.dtype)
        ),
        "not normalised",
    ),
    "squares": (norm_by_squares, "are the distances from the mean squared?"),
    "its own dtype": (norm_in_its_dtype, "mean and variance taken in float32?"),
    "always float32": (norm_always_float, "holds torch.float32, where torch.float64"),
    "largest": (norm_to_the_largest, "the numbers are not normalised"),
    "mean square": (norm_by_rms, "the numbers are not normalised"),
    "median": (norm_with_median, "the numbers are not normalised"),
    "softmax": (lambda x, a, b, eps=0: a * x.softmax(-1) + b, "are not normalised"),
    "absolute": (
        lambda x, scale, shift, eps=1e-5: (
            scale
            * (x - x.mean(-1, keepdim=True))
            / (x - x.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)
            + shift
        ),
        "the numbers are not normalised",
    ),
    "no keepdim": (
        lambda x, scale, shift, eps=1e-5: scale * (x - x.mean(-1)) + shift,
        "raises RuntimeError: The size of tensor a",
    ),
    "numpy back": (
        lambda x, *rest, **more: norm_by_var(x, *rest, **more).numpy(),
        "where a tensor is asked for",
    ),
}


# --- 4.5 ------------------------------------------------------------------------------


def block_in_two_names(block, x):
    middle = block.att(block.norm1(x)) + x
    return block.ff(block.norm2(middle)) + middle


def block_with_dropout(block, x):
    x = x + block.drop_shortcut(block.att(block.norm1(x)))
    return x + block.drop_shortcut(block.ff(block.norm2(x)))


def block_as_in_the_book(block, x):
    for norm, branch in ((block.norm1, block.att), (block.norm2, block.ff)):
        shortcut = x
        x = branch(norm(x))
        x = x + shortcut
    return x


def block_after_eval(block, x):
    block.eval()
    return block_in_two_names(block, x)


def block_in_place(block, x):
    x += block.att(block.norm1(x))
    x += block.ff(block.norm2(x))
    return x


def block_by_forward(block, x):
    x = torch.add(x, block.att.forward(block.norm1.forward(x)))
    return x.add(block.ff.forward(block.norm2.forward(x)))


def block_token_by_token(block, x):
    x = x + block.att(block.norm1(x))
    rows = [x[:, t] + block.ff(block.norm2(x[:, t])) for t in range(x.shape[1])]
    return torch.stack(rows, dim=1)


def block_by_layers(block, x):
    x = x + block.att(block.norm1(x))
    hidden = block.norm2(x)
    for layer in block.ff.layers:
        hidden = layer(hidden)
    return x + hidden


def block_row_by_row(block, x):
    return torch.cat([block_in_two_names(block, row[None]) for row in x])


def block_by_sum(block, x):
    first = block.att(block.norm1(x))
    return sum((x, first, block.ff(block.norm2(x + first))))


RIGHT["4_5"] = {
    "two names": block_in_two_names,
    "dropout": block_with_dropout,
    "the book's": block_as_in_the_book,
    "eval": block_after_eval,
    "in place": block_in_place,
    "forward": block_by_forward,
    "token by token": block_token_by_token,
    "layers": block_by_layers,
    "rows": block_row_by_row,
    "sum": block_by_sum,
    "no gradients": torch.no_grad()(block_in_two_names),
}
WRONG["4_5"] = {
    "forward of the block": (lambda b, x: b.forward(x), "only its parts"),
    "two blocks": (
        lambda b, x: block_in_two_names(b, block_in_two_names(b, x)),
        "in another way",
    ),
    "attention twice": (
        lambda b, x: x + b.att(b.norm1(x)) + b.att(b.norm1(x)),
        "in another way",
    ),
    "half of each": (
        lambda b, x: x + 0.5 * (block_in_two_names(b, x) - x),
        "in another way",
    ),
    "normalised at the end": (
        lambda b, x: b.norm2(block_in_two_names(b, x)),
        "in another way",
    ),
    "subtracted": (
        lambda b, x: x - b.att(b.norm1(x)) + b.ff(b.norm2(x - b.att(b.norm1(x)))),
        "in another way",
    ),
    "branches alone": (
        lambda b, x: block_in_two_names(b, x) - x,
        "in another way",
    ),
    "the input": (lambda b, x: x, "in another way"),
    "first row": (lambda b, x: block_in_two_names(b, x)[0], "keeps the shape"),
    "a pair": (lambda b, x: (x, block_in_two_names(b, x)), "a tensor is asked for"),
}


# --- 4.6 ------------------------------------------------------------------------------


def embed_in_loops(model, idx, attention_mask):
    out = torch.zeros(*idx.shape, model.tok_emb.embedding_dim, dtype=torch.float64)
    for row in range(len(idx)):
        place = 0
        for column in range(idx.shape[1]):
            if attention_mask[row, column]:
                token = model.tok_emb.weight[idx[row, column]]
                out[row, column] = token + model.pos_emb.weight[place]
                place += 1
    return out


def embed_with(positions):
    def attempt(model, idx, attention_mask):
        places = positions(attention_mask.clone())
        return model.tok_emb(idx) + model.pos_emb(places)

    return attempt


def clamped_from_the_first(mask):
    """The column minus that of the first real token."""
    first = mask.long().argmax(dim=1, keepdim=True)
    places = torch.arange(mask.shape[1]) - first
    return places.clamp(0, 8)


def in_numpy(mask):
    return torch.from_numpy(np.maximum(np.cumsum(mask.numpy(), axis=1) - 1, 0))


def filled(mask):
    places = mask.long().cumsum(-1) - 1
    return places.masked_fill(~mask, 8)


def exclusive(mask):
    """How many real tokens stand before each place."""
    return mask.cumsum(dim=1) - mask.long()


def by_triangle(mask):
    T = mask.shape[1]
    before = torch.ones(T, T).tril(diagonal=-1)  # (T, T)
    return (mask.float() @ before.T).long()


RIGHT["4_6"] = {
    "loops": embed_in_loops,
    "the module's": lambda model, idx, real: (
        model.tok_emb(idx) + model.pos_emb(token_positions(idx, real))
    ),
    "first real": embed_with(clamped_from_the_first),
    "numpy": embed_with(in_numpy),
    "filled": embed_with(filled),
    "before": embed_with(exclusive),
    "triangle": embed_with(by_triangle),
    "where": embed_with(
        lambda mask: torch.where(mask, mask.long().cumsum(1) - 1, 0),
    ),
    "relu": embed_with(lambda mask: F.relu(mask.long().cumsum(1) - 1)),
    "rows of the table": lambda model, idx, real: (
        model.tok_emb.weight[idx] + model.pos_emb.weight[exclusive(real)]
    ),
    "with dropout": lambda model, idx, real: model.drop_emb(
        model.tok_emb(idx) + model.pos_emb(exclusive(real))
    ),
}


def by_ids(model, idx, attention_mask):
    places = ((idx != 0).cumsum(dim=1) - 1).clamp(min=0)
    return model.tok_emb(idx) + model.pos_emb(places)


WRONG["4_6"] = {
    "padding by id": (by_ids, "found by the token id 0"),
    "minus the count": (
        embed_with(lambda mask: (mask.cumsum(1) - mask.sum(1, True)).clamp(min=0)),
        "the first position",
    ),
    "right alone": (
        embed_with(lambda mask: torch.arange(mask.shape[1]) * mask.long()),
        "the position is the column",
    ),
    "from two": (embed_with(lambda mask: mask.cumsum(1) + 1), "not that of its token"),
    "of the padding": (
        embed_with(lambda mask: (~mask).cumsum(1)),
        "not that of its token",
    ),
    "normalised": (
        lambda *given: F.layer_norm(embed_in_loops(*given), (12,)),
        "not that of its token",
    ),
    "averaged": (
        lambda *given: embed_in_loops(*given) / 2,
        "not that of its token",
    ),
    "the logits": (
        lambda model, idx, real: model(idx, attention_mask=real),
        "one vector for each place",
    ),
    "a flat list": (
        lambda *given: embed_in_loops(*given).flatten(0, 1),
        "one vector for each place",
    ),
    "unshifted": (
        embed_with(lambda mask: mask.long().cumsum(1).clamp(max=8)),
        "start at 1, not at 0",
    ),
}


# --- 4.7 ------------------------------------------------------------------------------


def left_filled(prompts, pad=0):
    longest = max(len(prompt) for prompt in prompts)
    idx = torch.full((len(prompts), longest), pad)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        idx[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = True
    return idx, real


def right_filled(prompts, pad=0):
    tensors = [torch.tensor(prompt) for prompt in prompts]
    idx = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return idx, torch.arange(idx.shape[1]) < lengths[:, None], lengths


def by_padding_with(pad):
    def attempt(model, prompts):
        idx, real = left_filled(prompts, pad)
        return model(idx, attention_mask=real)[:, -1]

    return attempt


def by_padding_right(model, prompts):
    idx, real, lengths = right_filled(prompts)
    logits = model(idx, attention_mask=real)
    return logits[range(len(prompts)), lengths - 1]


def by_gathering(model, prompts):
    idx, real, lengths = right_filled(prompts, pad=5)
    logits = model(idx)
    last = (lengths - 1)[:, None, None].expand(-1, 1, logits.shape[-1])
    return logits.gather(1, last).squeeze(1)


def by_forward(model, prompts):
    idx, real = left_filled(prompts)
    return model.forward(idx, real.long())[:, -1, :]


def sorted_by_length(model, prompts):
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    logits = by_padding_right(model, [prompts[i] for i in order])
    return logits[torch.tensor(order).argsort()]


def by_flipping(model, prompts):
    tensors = [torch.tensor(prompt).flip(0) for prompt in prompts]
    idx = nn.utils.rnn.pad_sequence(tensors, batch_first=True).flip(1)
    real = nn.utils.rnn.pad_sequence(
        [torch.ones_like(tensor) for tensor in tensors], batch_first=True
    ).flip(1)
    return model(idx, attention_mask=real)[:, -1]


def by_stacking(model, prompts):
    idx, real = left_filled(prompts)
    return torch.stack([row[-1] for row in model(idx, real)])


def in_numpy_arrays(model, prompts):
    longest = max(map(len, prompts))
    idx = np.zeros((len(prompts), longest), dtype=np.int64)
    real = np.zeros_like(idx)
    for row, prompt in enumerate(prompts):
        idx[row, -len(prompt) :] = prompt
        real[row, -len(prompt) :] = 1
    return model(torch.from_numpy(idx), torch.from_numpy(real))[:, -1]


RIGHT["4_7"] = {
    "pad 0": by_padding_with(0),
    "pad 1": by_padding_with(1),
    "the last id": by_padding_with(28),
    "on the right": by_padding_right,
    "gather, no mask": by_gathering,
    "forward": by_forward,
    "sorted": sorted_by_length,
    "flipped": by_flipping,
    "stacked": by_stacking,
    "numpy": in_numpy_arrays,
    "no gradients": torch.no_grad()(by_padding_right),
}


def mask_from_ids(pad):
    def attempt(model, prompts):
        idx, _ = left_filled(prompts, pad)
        return model(idx, attention_mask=idx != pad)[:, -1]

    return attempt


def lengths_from_ids(model, prompts):
    idx, _, _ = right_filled(prompts)
    return model(idx)[torch.arange(len(prompts)), (idx != 0).sum(dim=1) - 1]


def right_mask_from_ids(model, prompts):
    idx, _, lengths = right_filled(prompts)
    return model(idx, idx != 0)[torch.arange(len(prompts)), lengths - 1]


def forward_each(model, prompts):
    return torch.cat([model.forward(torch.tensor([p]))[:, -1] for p in prompts])


def second_last(model, prompts):
    idx, real = left_filled([[*prompt, 0] for prompt in prompts])
    return model(idx, real)[:, -1]


WRONG["4_7"] = {
    "mask from ids": (mask_from_ids(0), "made from the ids"),
    "mask from other ids": (mask_from_ids(1), "a row is not right"),
    "right mask from ids": (right_mask_from_ids, "made from the ids"),
    "lengths from ids": (lengths_from_ids, "lengths were counted from the ids"),
    "forward for each": (forward_each, "the model was called 3 times"),
    "a token more": (second_last, "a row is not right"),
    "the end of text of GPT-2": (by_padding_with(50256), "50256, but this model knows"),
    "mean over places": (
        lambda model, prompts: model(*left_filled(prompts)).mean(dim=1),
        "a row is not right",
    ),
    "the likeliest": (
        lambda model, prompts: by_padding_right(model, prompts).argmax(dim=-1),
        "one row of V logits",
    ),
    "a list": (
        lambda model, prompts: list(by_padding_right(model, prompts)),
        "a tensor is asked for",
    ),
}


# --- 4.8 ------------------------------------------------------------------------------


def stops_by_where(model, idx, max_new_tokens, context_size, stop_id):
    alive = torch.ones(len(idx), dtype=torch.bool)
    for _ in range(max_new_tokens):
        if not alive.any():
            break
        logits = model(idx[:, -context_size:])[:, -1]
        new = torch.where(alive, logits.argmax(-1), torch.tensor(stop_id))
        alive &= new != stop_id
        idx = torch.hstack((idx, new[:, None]))
    return idx


def stops_with_while(model, idx, max_new_tokens, context_size, stop_id):
    start = idx.shape[1]
    while idx.shape[1] < start + max_new_tokens:
        done = (idx[:, start:] == stop_id).any(dim=1)  # new tokens alone
        if done.all():
            return idx
        new = model(idx[:, -context_size:])[:, -1].argmax(dim=-1, keepdim=True)
        new[done] = stop_id
        idx = torch.cat((idx, new), dim=1)
    return idx


def stops_by_lists(model, idx, max_new_tokens, context_size, stop_id):
    rows, done = idx.tolist(), [False] * len(idx)
    for _ in range(max_new_tokens):
        if all(done):
            break
        given = torch.tensor([row[-context_size:] for row in rows])
        for i, token in enumerate(model(given)[:, -1].argmax(-1).tolist()):
            rows[i].append(stop_id if done[i] else token)
            done[i] = done[i] or token == stop_id
    return torch.tensor(rows)


def stops_cut_afterwards(model, idx, max_new_tokens, context_size, stop_id):
    """One prompt at a time, and the shorter ones filled up."""
    start, texts = idx.shape[1], []
    for row in idx:
        text = row[None]
        for _ in range(max_new_tokens):
            text = generate_text_simple(model, text, 1, context_size)
            if text[0, -1] == stop_id:
                break
        texts.append(text[0])
    longest = max(len(text) for text in texts)
    assert longest >= start
    full = [F.pad(text, (0, longest - len(text)), value=stop_id) for text in texts]
    return torch.stack(full)


def stops_for_the_living(model, idx, max_new_tokens, context_size, stop_id):
    """Only prompts that have not stopped go into the model."""
    living = torch.arange(len(idx))
    for _ in range(max_new_tokens):
        new = torch.full((len(idx), 1), stop_id)
        logits = model(idx[living][:, -context_size:])[:, -1]
        new[living] = logits.argmax(dim=-1, keepdim=True)
        idx = torch.cat((idx, new), dim=1)
        living = living[new[living, 0] != stop_id]
        if len(living) == 0:
            break
    return idx


def stops_with_a_buffer(model, idx, max_new_tokens, context_size, stop_id):
    B, T = idx.shape
    out = torch.full((B, T + max_new_tokens), stop_id)
    out[:, :T] = idx
    done, end = torch.zeros(B, dtype=torch.bool), T
    while end < T + max_new_tokens and not done.all():
        logits = model(out[:, max(0, end - context_size) : end])
        out[:, end] = logits[:, -1].argmax(-1).masked_fill(done, stop_id)
        done = done | (out[:, end] == stop_id)
        end += 1
    return out[:, :end]


def stops_by_topk(model, idx, max_new_tokens, context_size, stop_id):
    done = torch.zeros(len(idx), 1).bool()
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            probabilities = model(idx[:, -context_size:])[:, -1].softmax(dim=-1)
        new = probabilities.topk(1).indices
        new = new * ~done + stop_id * done
        done = done | new.eq(stop_id)
        idx = torch.cat([idx, new], 1)
        if bool(done.all()):
            break
    return idx


def stops_recursively(model, idx, max_new_tokens, context_size, stop_id, done=None):
    done = [False] * len(idx) if done is None else done
    if max_new_tokens == 0 or all(done):
        return idx
    new = model(idx[:, -context_size:])[:, -1].argmax(-1)
    new = torch.tensor([stop_id if d else t for d, t in zip(done, new.tolist())])
    done = [d or t == stop_id for d, t in zip(done, new.tolist())]
    idx = torch.cat((idx, new[:, None]), dim=1)
    return stops_recursively(
        model, idx, max_new_tokens - 1, context_size, stop_id, done
    )


def stops_with_simple(model, idx, max_new_tokens, context_size, stop_id):
    done = set()
    for _ in range(max_new_tokens):
        idx = generate_text_simple(model, idx, 1, context_size).clone()
        for row in done:
            idx[row, -1] = stop_id
        done |= {row for row in range(len(idx)) if idx[row, -1] == stop_id}
        if len(done) == len(idx):
            break
    return idx


RIGHT["4_8"] = {
    "where": stops_by_where,
    "while": stops_with_while,
    "lists": stops_by_lists,
    "detached": lambda model, idx, *rest: stops_by_where(model, idx.detach(), *rest),
    "the living": stops_for_the_living,
    "buffer": stops_with_a_buffer,
    "topk": stops_by_topk,
    "recursion": stops_recursively,
    "the module's loop": stops_with_simple,
    "no gradients": torch.no_grad()(stops_by_where),
    "a copy": lambda *given: stops_with_while(*given).clone(),
}


def none_for_nothing(model, idx, max_new_tokens, *rest):
    return stops_by_where(model, idx, max_new_tokens, *rest) if max_new_tokens else None


def asks_once_more(model, idx, max_new_tokens, *rest):
    return stops_by_where(model, idx, max(1, max_new_tokens), *rest)


def stop_is_nine(model, idx, max_new_tokens, context_size, stop_id):
    return stops_by_where(model, idx, max_new_tokens, context_size, 9)


def filled_with_the_last(model, idx, max_new_tokens, context_size, stop_id):
    """A prompt that has stopped repeats its last token but one."""
    done = torch.zeros(len(idx), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = model(idx[:, -context_size:])[:, -1].argmax(dim=-1)
        idx = torch.cat((idx, new.where(~done, idx[:, -2])[:, None]), dim=1)
        done = done | (new == stop_id)
        if done.all():
            break
    return idx


def only_the_first_row(model, idx, max_new_tokens, context_size, stop_id):
    for _ in range(max_new_tokens):
        idx = generate_text_simple(model, idx, 1, context_size)
        if idx[0, -1] == stop_id:
            break
    return idx


def ends_with_the_last_row(model, idx, max_new_tokens, context_size, stop_id):
    done = torch.zeros(len(idx), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = model(idx[:, -context_size:])[:, -1].argmax(dim=-1)
        new = torch.where(done, stop_id, new)
        idx = torch.cat((idx, new[:, None]), dim=1)
        done |= new == stop_id
        if done[-1]:
            break
    return idx


def with_window(width):
    """The model gets other tokens than it could read."""

    def attempt(model, idx, max_new_tokens, context_size, stop_id):
        return stops_by_where(model, idx, max_new_tokens, width(context_size), stop_id)

    return attempt


def dead_from_the_start(model, idx, max_new_tokens, context_size, stop_id):
    """Takes a prompt's last token for a choice."""
    done = idx[:, -1] == stop_id
    for _ in range(max_new_tokens):
        new = model(idx[:, -context_size:])[:, -1].argmax(dim=-1)
        new = torch.where(done, stop_id, new)
        idx = torch.cat((idx, new[:, None]), dim=1)
        done = done | (new == stop_id)
        if done.all():
            break
    return idx


def stopped_by_its_last_token(model, idx, max_new_tokens, context_size, stop_id):
    for _ in range(max_new_tokens):
        done = idx[:, -1] == stop_id
        new = model(idx[:, -context_size:])[:, -1].argmax(dim=-1)
        new = torch.where(done, stop_id, new)
        idx = torch.cat((idx, new[:, None]), dim=1)
        if (new == stop_id).all():
            break
    return idx


def returns_in_the_loop(model, idx, max_new_tokens, context_size, stop_id):
    for _ in range(max_new_tokens):
        new = model(idx[:, -context_size:])[:, -1:].argmax(dim=-1)
        return torch.cat((idx, new), dim=1)
    return idx


def asks_with_the_prompt(model, idx, max_new_tokens, context_size, stop_id):
    text = idx
    for _ in range(max_new_tokens):
        new = model(idx[:, -context_size:])[:, -1:].argmax(dim=-1)
        text = torch.cat((text, new), dim=1)
        if (new == stop_id).all():
            break
    return text


def asks_with_the_prompt_and_fills(model, idx, max_new_tokens, context_size, stop_id):
    text = asks_with_the_prompt(model, idx, max_new_tokens, context_size, stop_id)
    return text[:, :8]


WRONG["4_8"] = {
    "last row ends it": (ends_with_the_last_row, "the last prompt is the last to stop"),
    "a window too short": (with_window(lambda size: size - 1), "was given 3 of 4"),
    "one token": (with_window(lambda size: 1), "was given 1 of 3"),
    "dead from the start": (dead_from_the_start, "a prompt that ends with stop_id"),
    "its last token": (stopped_by_its_last_token, "a prompt that ends with stop_id"),
    "return in the loop": (returns_in_the_loop, "ended after one new token"),
    "asked with the prompt": (asks_with_the_prompt, "does not follow from the first"),
    "asked so, and cut": (
        asks_with_the_prompt_and_fills,
        "does not follow from the first",
    ),
    "nothing appended": (
        lambda model, idx, *rest: [model(idx), idx][1],
        "no new token came",
    ),
    "any stop ends": (
        lambda model, idx, n, size, stop: (
            idx
            if (idx == stop).any(dim=1).all()
            else stops_by_where(model, idx, n, size, stop)
        ),
        "within a prompt was taken for its end",
    ),
    "None for nothing": (none_for_nothing, "with max_new_tokens=0 the result is None"),
    "at least one": (asks_once_more, "asks for no new token"),
    "one by one": (stops_cut_afterwards, "the model ran 8 times, where 5 are enough"),
    "first row ends it": (only_the_first_row, "as soon as one prompt had stopped"),
    "without the stop": (
        lambda *given: stops_by_where(*given)[:, :-1],
        "that ends the longest answer is missing",
    ),
    "lists": (
        lambda *given: stops_by_where(*given).tolist(),
        "not a tensor (B, T + n)",
    ),
    "new tokens alone": (
        lambda model, idx, *rest: stops_by_where(model, idx, *rest)[:, idx.shape[1] :],
        "does not begin with the prompts",
    ),
    "least likely": (
        lambda model, *rest: stops_by_where(lambda idx: -model(idx), *rest),
        "not the likeliest one",
    ),
    "filled with the last": (filled_with_the_last, "filled with something else"),
    "context of one": (
        lambda model, idx, n, size, stop: stops_by_where(model, idx, n, 99, stop),
        "the model was given 5 tokens and reads at most 4",
    ),
}


# --- the table ------------------------------------------------------------------------


def each(table):
    return [(number, name) for number, rows in table.items() for name in rows]


@pytest.mark.parametrize(("number", "name"), each(RIGHT))
def test_a_right_answer_is_taken(number, name):
    said = answer(getattr(ch04_checks, f"check_{number}"), RIGHT[number][name])
    assert ": correct. " in said, said


@pytest.mark.parametrize(("number", "name"), each(WRONG))
def test_a_wrong_answer_is_refused_for_its_reason(number, name):
    attempt, fragment = WRONG[number][name]
    said = answer(getattr(ch04_checks, f"check_{number}"), attempt)
    assert ": correct" not in said
    assert fragment in said, said


def test_ten_of_each():
    for table in (RIGHT, WRONG):
        assert [number for number, rows in table.items() if len(rows) < 10] == []
        assert len(table) == 8
