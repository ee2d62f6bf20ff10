"""Every exercise check takes the solution, knows the stub and names mistakes."""

import pytest
import torch
from torch import nn

from ch04_checks import (
    check_4_1,
    check_4_2,
    check_4_3,
    check_4_4,
    check_4_5,
    check_4_6,
    check_4_7,
    check_4_8,
)
from course.exercises import verify
from gpt import (
    GPT_CONFIG_124M,
    GPTModel,
    TransformerBlock,
    count_parameters,
    generate_text_simple,
)


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


# --- 4.1 ------------------------------------------------------------------------------


def block_parameters(cfg):
    block = TransformerBlock(cfg)
    return count_parameters(block.att), count_parameters(block.ff)


def by_hand(cfg, out_proj=True, out_bias=True, qkv_bias=None, ff_bias=True, factor=4):
    D = cfg["emb_dim"]
    biases = cfg["qkv_bias"] if qkv_bias is None else qkv_bias
    attention = 3 * (D * D + D * biases) + out_proj * D * D + out_bias * D
    feed_forward = 2 * factor * D * D + ff_bias * (factor + 1) * D
    return attention, feed_forward


def with_norms(cfg):
    attention, feed_forward = by_hand(cfg)
    return attention + 2 * cfg["emb_dim"], feed_forward + 2 * cfg["emb_dim"]


def with_buffers(cfg):
    attention, feed_forward = by_hand(cfg)
    return attention + cfg["context_length"] ** 2, feed_forward


def of_all_blocks(cfg):
    return tuple(cfg["n_layers"] * number for number in by_hand(cfg))


WRONG_4_1 = {
    "exchanged": (lambda cfg: by_hand(cfg)[::-1], "attention comes first"),
    "all blocks": (of_all_blocks, "those of all blocks together"),
    "mask": (with_buffers, "includes the causal mask"),
    "no out_proj": (
        lambda cfg: by_hand(cfg, out_proj=False, out_bias=False),
        "the fourth of its matrices",
    ),
    "no bias in out_proj": (
        lambda cfg: by_hand(cfg, out_bias=False),
        "lacks the bias of out_proj",
    ),
    "norms": (with_norms, "it belongs to neither"),
    "no biases in the feed-forward part": (
        lambda cfg: by_hand(cfg, ff_bias=False),
        "lacks its two biases",
    ),
    "hidden layer as wide as a token": (
        lambda cfg: by_hand(cfg, factor=1),
        "not four times as wide",
    ),
    "biases always": (
        lambda cfg: by_hand(cfg, qkv_bias=True),
        "although qkv_bias is False",
    ),
    "biases never": (
        lambda cfg: by_hand(cfg, qkv_bias=False),
        "missing where qkv_bias is True",
    ),
    "from memory": (
        lambda cfg: by_hand({**cfg, "emb_dim": 12}),
        "all is well for a width of 12, but not for 20",
    ),
    "one number": (lambda cfg: sum(by_hand(cfg)), "not the 2 numbers"),
}


# --- 4.2 ------------------------------------------------------------------------------


def model_size(cfg, unit=2**20, width=4):
    with torch.device("meta"):
        untied = count_parameters(GPTModel({**cfg, "tie_weights": False}))
        tied = count_parameters(GPTModel({**cfg, "tie_weights": True}))
    return untied, tied, width * untied / unit


def size_in_real_memory(cfg):
    untied = count_parameters(GPTModel({**cfg, "tie_weights": False}))
    return untied, untied - cfg["vocab_size"] * cfg["emb_dim"], 4 * untied / 2**20


def size_of_what_the_config_says(cfg):
    with torch.device("meta"):
        own = count_parameters(GPTModel(cfg))
    return own, own - cfg["vocab_size"] * cfg["emb_dim"], 4 * own / 2**20


def size_less(*fields):
    def size(cfg):
        untied, _, memory = model_size(cfg)
        return untied, untied - cfg[fields[0]] * cfg[fields[1]], memory

    return size


def size_without_a_second_model(cfg):
    untied, _, memory = model_size(cfg)
    return untied, untied, memory


def size_tied_first(cfg):
    untied, tied, memory = model_size(cfg)
    return tied, untied, memory


def memory_of_the_tied(cfg):
    untied, tied, _ = model_size(cfg)
    return untied, tied, 4 * tied / 2**20


WRONG_4_2 = {
    "real memory": (size_in_real_memory, "147 MiB was made in real memory"),
    "only what the config says": (
        size_of_what_the_config_says,
        "the tied one when the config says",
    ),
    "positions taken away": (
        size_less("context_length", "emb_dim"),
        "not the table of positions",
    ),
    "never tied": (size_without_a_second_model, "was the second model tied"),
    "exchanged": (size_tied_first, "tied and untied are exchanged"),
    "million bytes": (lambda cfg: model_size(cfg, 1e6), "units of a million bytes"),
    "bytes": (lambda cfg: model_size(cfg, 1), "the memory is in bytes"),
    "half precision": (lambda cfg: model_size(cfg, width=2), "with 2 bytes"),
    "numbers for bytes": (lambda cfg: model_size(cfg, width=1), "with 1 byte for"),
    "memory of the tied one": (memory_of_the_tied, "is that of the tied model"),
    "layers from memory": (
        lambda cfg: model_size({**cfg, "n_layers": 2}),
        "for 12 layers and tie_weights=False the untied number",
    ),
}


# --- 4.3 ------------------------------------------------------------------------------


def with_dropouts(cfg, embedding, attention, shortcut):
    model = GPTModel(cfg)
    model.drop_emb.p = embedding
    for block in model.trf_blocks:
        block.att.dropout.p = attention
        block.drop_shortcut.p = shortcut
    return model


def only_in_the_first_block(cfg, embedding, attention, shortcut):
    model = GPTModel(cfg)
    model.drop_emb.p = embedding
    model.trf_blocks[0].att.dropout.p = attention
    model.trf_blocks[0].drop_shortcut.p = shortcut
    return model


def attention_forgotten(cfg, embedding, attention, shortcut):
    model = with_dropouts(cfg, embedding, attention, shortcut)
    for block in model.trf_blocks:
        block.att.dropout.p = cfg["drop_rate"]
    return model


def zero_taken_for_none(cfg, embedding, attention, shortcut):
    rate = cfg["drop_rate"]
    return with_dropouts(cfg, embedding or rate, attention or rate, shortcut or rate)


def into_the_config(cfg, embedding, attention, shortcut):
    cfg["drop_rate"] = embedding
    return with_dropouts(cfg, embedding, attention, shortcut)


WRONG_4_3 = {
    "nothing": (
        lambda cfg, *rates: GPTModel(cfg),
        "the rate after the embeddings is 0.3, still that of the config",
    ),
    "attention forgotten": (
        attention_forgotten,
        "the rate on attention weights is 0.3, still that of the config",
    ),
    "exchanged": (
        lambda cfg, e, a, s: with_dropouts(cfg, e, s, a),
        "attention and shortcuts are exchanged",
    ),
    "another order": (
        lambda cfg, e, a, s: with_dropouts(cfg, a, e, s),
        "after the embeddings is 0.2, not the one that was asked for",
    ),
    "first block only": (only_in_the_first_block, "block 1 has other rates"),
    "zero is no rate": (zero_taken_for_none, "0.0 is a rate like any other"),
    "evaluation mode": (
        lambda *arguments: with_dropouts(*arguments).eval(),
        "where nothing is dropped",
    ),
    "another model": (
        lambda cfg, *rates: with_dropouts({**cfg, "n_layers": 1}, *rates),
        "other sizes than the config",
    ),
    "config": (into_the_config, "cfg was changed"),
    "a block": (lambda cfg, *rates: TransformerBlock(cfg), "not a GPTModel"),
}


# --- 4.4 ------------------------------------------------------------------------------


def layer_norm(x, scale, shift, eps=1e-5):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return (scale * centred / torch.sqrt(variance + eps) + shift).to(x.dtype)


def in_place(x, scale, shift, eps=1e-5):
    out = layer_norm(x, scale, shift, eps)
    x -= x.mean(dim=-1, keepdim=True)
    return out


def normalised(x, eps=1e-5, unbiased=False, outside=False, dim=-1, mean=True):
    average = x.mean(dim=dim, keepdim=True)
    variance = x.var(dim=dim, keepdim=True, unbiased=unbiased)
    root = variance.sqrt() + eps if outside else (variance + eps).sqrt()
    return (x - average if mean else x) / root


def norm(**slip):
    def attempt(x, scale, shift, eps=1e-5):
        return scale * normalised(x, **{"eps": eps, **slip}) + shift

    return attempt


def by_variance(x, scale, shift, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    return scale * centred / (x.var(dim=-1, keepdim=True, unbiased=False) + eps) + shift


WRONG_4_4 = {
    "unbiased": (norm(unbiased=True), "one less than the number of entries, as torch"),
    "epsilon outside": (norm(outside=True), "eps is added after the root"),
    "both": (norm(unbiased=True, outside=True), "both go wrong"),
    "no epsilon": (norm(eps=0.0), "eps is not used"),
    "epsilon fixed": (norm(eps=1e-5), "eps=0.01 is passed and makes no difference"),
    "mean stays": (norm(mean=False), "the mean is not taken away"),
    "variance for its root": (by_variance, "by the variance, not by its root"),
    "not divided": (
        lambda x, scale, shift, eps=0: scale * (x - x.mean(-1, keepdim=True)) + shift,
        "nothing is divided",
    ),
    "over tokens": (norm(dim=1), "over the tokens of a sequence"),
    "over the batch": (norm(dim=0), "over the batch"),
    "over everything": (norm(dim=(0, 1, 2)), "over all numbers at once"),
    "neither": (
        lambda x, scale, shift, eps=1e-5: normalised(x, eps),
        "scale and shift are not used",
    ),
    "no shift": (
        lambda x, scale, shift, eps=1e-5: scale * normalised(x, eps),
        ": shift is not used",
    ),
    "no scale": (
        lambda x, scale, shift, eps=1e-5: normalised(x, eps) + shift,
        ": scale is not used",
    ),
    "shift first": (
        lambda x, scale, shift, eps=1e-5: scale * (normalised(x, eps) + shift),
        "the shift comes before the scale",
    ),
    "exchanged": (
        lambda x, scale, shift, eps=1e-5: layer_norm(x, shift, scale, eps),
        "scale and shift are exchanged",
    ),
    "in place": (in_place, "x itself was changed"),
    "a token at a time": (
        lambda x, *rest, **eps: layer_norm(x, *rest, **eps)[0],
        "shape (3, 6), not (2, 3, 6)",
    ),
}


# --- 4.5 ------------------------------------------------------------------------------


def block_forward(block, x):
    x = x + block.att(block.norm1(x))
    return x + block.ff(block.norm2(x))


def no_first_shortcut(block, x):
    x = block.att(block.norm1(x))
    return x + block.ff(block.norm2(x))


def no_second_shortcut(block, x):
    x = x + block.att(block.norm1(x))
    return block.ff(block.norm2(x))


def post_norm(block, x):
    x = block.norm1(x + block.att(x))
    return block.norm2(x + block.ff(x))


def norm_after_the_branch(block, x):
    x = x + block.norm1(block.att(x))
    return x + block.norm2(block.ff(x))


def normalised_first_shortcut(block, x):
    x = block.norm1(x)
    x = x + block.att(x)
    return x + block.ff(block.norm2(x))


def normalised_shortcuts(block, x):
    x = block.norm1(x)
    x = x + block.att(x)
    x = block.norm2(x)
    return x + block.ff(x)


def feed_forward_first(block, x):
    x = x + block.ff(block.norm2(x))
    return x + block.att(block.norm1(x))


def first_half_lost(block, x):
    attended = x + block.att(block.norm1(x))
    assert attended.shape == x.shape
    return x + block.ff(block.norm2(x))


def attention_not_normalised(block, x):
    x = x + block.att(x)
    return x + block.ff(block.norm2(x))


def norms_exchanged(block, x):
    x = x + block.att(block.norm2(x))
    return x + block.ff(block.norm1(x))


def second_shortcut_from_the_start(block, x):
    middle = x + block.att(block.norm1(x))
    return x + block.ff(block.norm2(middle))


def half(block, x):
    return x + block.att(block.norm1(x))


WRONG_4_5 = {
    "no first shortcut": (no_first_shortcut, "no shortcut around attention"),
    "no second shortcut": (no_second_shortcut, "around the feed-forward part"),
    "no shortcut": (
        lambda b, x: b.ff(b.norm2(b.att(b.norm1(x)))),
        "no shortcut at all",
    ),
    "post-norm": (post_norm, "after the sums, as in the first transformer"),
    "norm after the branch": (norm_after_the_branch, "come after the branches"),
    "first shortcut normalised": (normalised_first_shortcut, "the normalised x"),
    "both shortcuts normalised": (normalised_shortcuts, "both shortcuts carry"),
    "feed-forward first": (feed_forward_first, "feed-forward part comes first"),
    "second half from x": (first_half_lost, "the second half starts from x"),
    "side by side": (
        lambda b, x: x + b.att(b.norm1(x)) + b.ff(b.norm2(x)),
        "side by side",
    ),
    "second shortcut from x": (
        second_shortcut_from_the_start,
        "the second shortcut starts from x",
    ),
    "norm1 twice": (lambda b, x: half(b, x) + b.ff(b.norm1(half(b, x))), "in both"),
    "norms exchanged": (norms_exchanged, "norm1 and norm2 are exchanged"),
    "attention without norm": (attention_not_normalised, "attention reads x as it is"),
    "feed-forward without norm": (
        lambda b, x: half(b, x) + b.ff(half(b, x)),
        "reads its input as it is",
    ),
    "half": (half, "only the first half is there"),
    "no norm": (lambda b, x: x + b.att(x) + b.ff(x + b.att(x)), "nothing is normal"),
    "the block itself": (lambda block, x: block(x), "only its parts"),
    "transposed": (lambda b, x: block_forward(b, x).transpose(1, 2), "keeps the shape"),
    "something else": (lambda b, x: 2 * block_forward(b, x), "in another way"),
}


# --- 4.6 ------------------------------------------------------------------------------


def embed(model, idx, attention_mask):
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return model.tok_emb(idx) + model.pos_emb(positions)


def embed_at(positions):
    def attempt(model, idx, attention_mask):
        return model.tok_emb(idx) + model.pos_emb(positions(idx, attention_mask))

    return attempt


def padding_first(model, idx, attention_mask):
    """Right for padding on the left alone: counts how much of it there is."""
    padding = (~attention_mask).sum(dim=1, keepdim=True)
    positions = (torch.arange(idx.shape[1]) - padding).clamp(min=0)
    return model.tok_emb(idx) + model.pos_emb(positions)


WRONG_4_6 = {
    "columns": (
        embed_at(lambda idx, real: torch.arange(idx.shape[1])),
        "is counted like text",
    ),
    "from 1": (embed_at(lambda idx, real: real.cumsum(dim=1)), "start at 1, not at 0"),
    "no clamp": (embed_at(lambda idx, real: real.cumsum(dim=1) - 1), "IndexError"),
    "token ids": (embed_at(lambda idx, real: idx), "is asked for token ids"),
    "rows": (
        embed_at(lambda idx, real: torch.arange(4)[: len(idx), None].expand_as(idx)),
        "rows of the batch",
    ),
    "position 0": (
        embed_at(lambda idx, real: torch.zeros_like(idx)),
        "all tokens get the first position",
    ),
    "the mask itself": (embed_at(lambda idx, real: real.long()), "holds only 0 and 1"),
    "from the end": (
        embed_at(
            lambda idx, real: (real.flip(1).cumsum(1).flip(1) - 1).clamp(min=0),
        ),
        "from the end of the prompt",
    ),
    "down the batch": (
        embed_at(lambda idx, real: (real.cumsum(dim=0) - 1).clamp(min=0)),
        "down the batch, not along",
    ),
    "no positions": (lambda model, idx, real: model.tok_emb(idx), "only tokens"),
    "no tokens": (
        lambda model, idx, real: model.pos_emb((real.cumsum(1) - 1).clamp(min=0)),
        "only positions",
    ),
    "multiplied": (
        lambda model, idx, real: (
            model.tok_emb(idx) * model.pos_emb((real.cumsum(1) - 1).clamp(min=0))
        ),
        "multiplied, not added",
    ),
    "padding on the left alone": (padding_first, "not that of its token and its place"),
    "real tokens alone": (
        lambda model, idx, real: embed(model, idx, real)[real],
        "one vector for each place",
    ),
}


# --- 4.7 ------------------------------------------------------------------------------


def padded_left(prompts):
    longest = max(map(len, prompts))
    idx = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return idx, real


def padded_right(prompts):
    longest = max(map(len, prompts))
    idx = torch.tensor([p + [0] * (longest - len(p)) for p in prompts])
    real = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
    return idx, real


def next_token_logits(model, prompts):
    idx, real = padded_left(prompts)
    return model(idx, attention_mask=real)[:, -1]


def by_padding_on_the_right(model, prompts):
    """Right without a mask, too: no prompt sees what stands behind it."""
    idx, _ = padded_right(prompts)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return model(idx)[torch.arange(len(prompts)), last]


def one_by_one(model, prompts):
    return torch.cat([model(torch.tensor([prompt]))[:, -1] for prompt in prompts])


def padded_in_place(model, prompts):
    longest = max(map(len, prompts))
    lengths = [len(prompt) for prompt in prompts]
    for prompt in prompts:
        prompt += [0] * (longest - len(prompt))
    out = model(torch.tensor(prompts))
    return out[torch.arange(len(prompts)), torch.tensor(lengths) - 1]


def cut(model, prompts, place):
    return model(torch.tensor([prompt[place] for prompt in prompts]))[:, -1]


def shortest(prompts):
    return min(map(len, prompts))


WRONG_4_7 = {
    "no mask": (
        lambda model, prompts: model(padded_left(prompts)[0])[:, -1],
        "the mask was not passed",
    ),
    "last column of a row padded on the right": (
        lambda model, prompts: model(*padded_right(prompts))[:, -1],
        "only the longest prompt has its answer.",
    ),
    "and no mask": (
        lambda model, prompts: model(padded_right(prompts)[0])[:, -1],
        "has its answer, and there was no mask",
    ),
    "mask the wrong way round": (
        lambda model, prompts: model(
            padded_left(prompts)[0], 1 - padded_left(prompts)[1]
        )[:, -1],
        "hides the prompts and shows the padding",
    ),
    "the other mask": (
        lambda model, prompts: model(padded_left(prompts)[0], padded_right(prompts)[1])[
            :, -1
        ],
        "that of padding on the right",
    ),
    "cut at the end": (
        lambda model, prompts: cut(model, prompts, slice(shortest(prompts))),
        "of the shortest, at the end",
    ),
    "cut at the start": (
        lambda model, prompts: cut(model, prompts, slice(-shortest(prompts), None)),
        "of the shortest, at the start",
    ),
    "first column": (
        lambda model, prompts: model(*padded_left(prompts))[:, 0],
        "those of the first column",
    ),
    "first token": (
        lambda model, prompts: model(*padded_right(prompts))[:, 0],
        "after each prompt's first token",
    ),
    "all columns": (
        lambda model, prompts: model(*padded_left(prompts)),
        "one row of V logits",
    ),
    "one by one": (one_by_one, "the model was called 3 times"),
    "prompts changed": (padded_in_place, "the lists of token ids were changed"),
    "probabilities": (
        lambda model, prompts: next_token_logits(model, prompts).softmax(dim=-1),
        "a row is not right",
    ),
    "ragged tensor": (
        lambda model, prompts: model(torch.tensor(prompts))[:, -1],
        "raises ValueError: expected sequence of length 3",
    ),
}


# --- 4.8 ------------------------------------------------------------------------------


def generate_until(
    model,
    idx,
    max_new_tokens,
    context_size,
    stop_id,
    enough=all,
    fill=None,
    window=lambda idx, size: idx[:, -size:],
    stopped=lambda idx, stop_id: torch.zeros(len(idx), 1, dtype=torch.bool),
    choose=lambda logits: logits[:, -1].argmax(dim=-1, keepdim=True),
):
    """Its options each plant one mistake."""
    done = stopped(idx, stop_id)
    for _ in range(max_new_tokens):
        chosen = choose(model(window(idx, context_size)))
        chosen = torch.where(done, stop_id if fill is None else fill, chosen)
        idx = torch.cat((idx, chosen), dim=1)
        done = done | (chosen == stop_id)
        if enough(done.flatten().tolist()):
            break
    return idx


def variant(**slip):
    return lambda *arguments: generate_until(*arguments, **slip)


def without_memory(model, idx, max_new_tokens, context_size, stop_id):
    for _ in range(max_new_tokens):
        idx = generate_text_simple(model, idx, 1, context_size)
        if (idx[:, -1] == stop_id).all():
            break
    return idx


def stop_left_out(model, idx, max_new_tokens, context_size, stop_id):
    out = generate_until(model, idx, max_new_tokens, context_size, stop_id)
    return out[:, :-1]


def new_only(model, idx, *rest):
    return generate_until(model, idx, *rest)[:, idx.shape[1] :]


def noticed_a_step_late(model, idx, max_new_tokens, context_size, stop_id):
    done = torch.zeros(len(idx), 1, dtype=torch.bool)
    for _ in range(max_new_tokens):
        chosen = model(idx[:, -context_size:])[:, -1].argmax(dim=-1, keepdim=True)
        if done.all():
            break
        chosen = torch.where(done, stop_id, chosen)
        done = done | (chosen == stop_id)
        idx = torch.cat((idx, chosen), dim=1)
    return idx


def one_too_many(model, idx, max_new_tokens, *rest):
    return generate_until(model, idx, max_new_tokens + 1, *rest)


WRONG_4_8 = {
    "first stop ends all": (variant(enough=any), "as soon as one prompt had stopped"),
    "never early": (variant(enough=lambda done: False), "3 more step(s) were made"),
    "a step late": (noticed_a_step_late, "the model ran 6 times"),
    "no memory of who stopped": (without_memory, "went on after its stop_id"),
    "filled with 0": (variant(fill=0), "something else than stop_id"),
    "first tokens read": (
        variant(window=lambda idx, size: idx[:, :size]),
        "the first context_size tokens, not the last",
    ),
    "all tokens read": (
        variant(window=lambda idx, size: idx),
        "the model was given 5 tokens and reads at most 4",
    ),
    "stop in the prompt": (
        variant(stopped=lambda idx, stop: (idx == stop).any(dim=1, keepdim=True)),
        "within a prompt was taken for its end",
    ),
    "first column": (
        variant(choose=lambda logits: logits[:, 0].argmax(dim=-1, keepdim=True)),
        "not the likeliest one after the prompt's last token",
    ),
    "stop left out": (stop_left_out, "that ends the longest answer is missing"),
    "answers alone": (new_only, "does not begin with the prompts"),
    "one token too many": (one_too_many, "until max_new_tokens ends the work"),
    "texts": (lambda *arguments: [[1]], "not a tensor (B, T + n)"),
}


# --- the checks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "solution", "wrong"),
    [
        (check_4_1, block_parameters, WRONG_4_1),
        (check_4_2, model_size, WRONG_4_2),
        (check_4_3, with_dropouts, WRONG_4_3),
        (check_4_4, layer_norm, WRONG_4_4),
        (check_4_5, block_forward, WRONG_4_5),
        (check_4_6, embed, WRONG_4_6),
        (check_4_7, next_token_logits, WRONG_4_7),
        (check_4_8, generate_until, WRONG_4_8),
    ],
)
def test_check(check, solution, wrong):
    verify(check, solution, stub, wrong)


def by_loop_with_simple(model, idx, max_new_tokens, context_size, stop_id):
    done = torch.zeros(len(idx), dtype=torch.bool)
    while max_new_tokens and not done.all():
        idx = generate_text_simple(model, idx, 1, context_size)
        idx[done, -1] = stop_id
        done |= idx[:, -1] == stop_id
        max_new_tokens -= 1
    return idx


class ThreeRates(GPTModel):
    """As the book does it: a model of one's own."""

    def __init__(self, cfg, embedding, attention, shortcut):
        super().__init__({**cfg, "drop_rate": shortcut})
        self.drop_emb = nn.Dropout(embedding)
        for block in self.trf_blocks:
            block.att.dropout = nn.Dropout(attention)


def by_torch(x, scale, shift, eps=1e-5):
    return nn.functional.layer_norm(x, x.shape[-1:], scale, shift, eps)


def sizes_rounded(cfg):
    untied, tied, memory = model_size(cfg)
    return untied, tied, round(memory, 2)


@pytest.mark.parametrize(
    ("check", "other"),
    [
        (check_4_1, by_hand),
        (check_4_2, sizes_rounded),
        (check_4_3, ThreeRates),
        (check_4_4, by_torch),
        (check_4_7, by_padding_on_the_right),
        (check_4_8, by_loop_with_simple),
    ],
)
def test_other_right_answers_pass_too(check, other, capsys):
    check(other)
    assert ": correct. " in capsys.readouterr().out


def test_the_numbers_of_the_statements():
    """What the solutions say about GPT-2's small model."""
    assert block_parameters(GPT_CONFIG_124M) == (2_360_064, 4_722_432)
    untied, tied, memory = model_size(GPT_CONFIG_124M)
    assert (untied, tied, round(memory, 2)) == (163_009_536, 124_412_160, 621.83)
