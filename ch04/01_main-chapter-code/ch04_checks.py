"""The checks of chapter 4's exercises; `course.exercises` says how a check answers.

A model with a mistake in it still returns numbers of the right shape. So a check
computes what the known slips would give, and says which one the answer agrees with.
"""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_tensor,
    random_tensor,
)
from gpt import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPTConfig,
    GPTModel,
    TransformerBlock,
    count_parameters,
)
from writing_checks import judge_writing

SIZES = dict(vocab_size=29, context_length=9, emb_dim=12, n_heads=3, n_layers=3)
TINY = {**GPT_CONFIG_124M, **SIZES, "drop_rate": 0.0}


def _tiny_model(seed=0, **changes):
    """A model in float64, so that only real mistakes count."""
    torch.manual_seed(seed)
    return GPTModel({**TINY, **changes}).double().eval()


# --- 4.1 Which part of a block is the bigger one? -------------------------------------


@check("4.1")
def check_4_1(attempt):
    for bias in (False, True):
        cfg = GPTConfig.of({**TINY, "qkv_bias": bias})  # cfg.emb_dim works, too
        found = _numbers(call(attempt, cfg), 2, "(attention, feed_forward)")
        block = TransformerBlock(cfg)
        right = (count_parameters(block.att), count_parameters(block.ff))
        expect_no_slip(found, right, _block_mistakes(block, cfg["n_layers"], *right))
        _expect_biases(found, right, block, bias)
        message = f"with qkv_bias={bias} a number is not right"
        expect_close(found, right, message, atol=0)
    wider = GPTConfig.of({**TINY, "emb_dim": 20, "n_heads": 2, "n_layers": 1})
    for cfg in (wider, GPT_CONFIG_124M):
        D = cfg["emb_dim"]
        right = (4 * D * D + D, 8 * D * D + 5 * D)
        width = f"all is well for a width of 12, but not for {D}"
        found = _numbers(call(attempt, cfg), 2, "(attention, feed_forward)")
        expect_close(found, right, width, atol=0)
    return "Three widths, with and without biases; at width 768 the ratio is 2.0."


def _numbers(found, count, names):
    """So many numbers, from a tuple, a list, a tensor or an array."""
    found = found.tolist() if hasattr(found, "tolist") else found
    fits = isinstance(found, (tuple, list)) and len(found) == count
    expect(fits, f"the result is {describe(found)}, not the {count} numbers {names}")
    return tuple(one.item() if hasattr(one, "item") else one for one in found)


def _block_mistakes(block, layers, attention, feed_forward):
    norms = count_parameters(block.norm1) + count_parameters(block.norm2)
    mask, D = block.att.mask.numel(), block.norm1.scale.numel()
    return {
        "the two numbers are exchanged; attention comes first": (
            (feed_forward, attention)
        ),
        "the numbers are those of all blocks together": (
            (layers * attention, layers * feed_forward)
        ),
        "the attention part includes the causal mask, which is not learned": (
            (attention + mask, feed_forward)
        ),
        "the attention part lacks out_proj, the fourth of its matrices": (
            (attention - D * D - D, feed_forward)
        ),
        "a normalisation is counted in each part, but it belongs to neither": (
            (attention + norms // 2, feed_forward + norms // 2)
        ),
        "the feed-forward part lacks its two biases": (
            (attention, feed_forward - 5 * D)
        ),
        "the hidden layer is counted as wide as the tokens, not four times as wide": (
            (attention, 2 * D * D + 2 * D)
        ),
    }


def _expect_biases(found, right, block, bias):
    D = block.norm1.scale.numel()
    without = right[0] - D - 3 * D * bias
    kinds = {
        "the attention part lacks the bias of out_proj": without + 3 * D * bias,
        "the attention part lacks all its biases": without,
        "the biases of queries, keys and values are counted although qkv_bias is False "
        "here": without + 4 * D,
        "the biases of queries, keys and values are missing where qkv_bias is True": (
            without + D
        ),
    }
    expect_no_slip(found[0], right[0], kinds)


# --- 4.2 The larger sisters -----------------------------------------------------------


class _NoMemory(TorchFunctionMode):
    """Stops whoever fills real memory with the weights of a large model."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            mebibytes = result.numel() * result.element_size() / 2**20
            if mebibytes > 4:
                raise MemoryError(
                    f"a tensor of {mebibytes:.0f} MiB was made in real memory"
                )
        return result


@check("4.2")
def check_4_2(attempt):
    small = {**GPT_CONFIG_124M, "emb_dim": 36, "n_layers": 2, "vocab_size": 9000}
    for changes in ({"tie_weights": False}, {"tie_weights": True}, {"qkv_bias": True}):
        cfg = GPTConfig.of({"tie_weights": False, **small, **changes})
        found = _numbers(call(attempt, cfg), 3, "(untied, tied, mebibytes)")
        expect_no_slip(found, _sizes(cfg), _size_mistakes(cfg))
        _expect_sizes(found, cfg)
    with _NoMemory():  # whoever spends none on the first of the four spends none at all
        _expect_sizes(call(attempt, GPT_CONFIG_124M), GPT_CONFIG_124M)
    for cfg in (GPT_CONFIG_355M, GPT_CONFIG_774M, GPT_CONFIG_1558M):
        _expect_sizes(call(attempt, cfg), cfg)
    return "Seven configs, up to 1,638 million parameters, and no memory spent."


def _sizes(cfg):
    """By arithmetic, which takes no time: building the largest model does."""
    V, T, D = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"]
    block = 12 * D * D + 10 * D + 3 * D * cfg["qkv_bias"]
    tied = (V + T) * D + cfg["n_layers"] * block + 2 * D
    return tied + V * D, tied, 4 * (tied + V * D) / 2**20


def _size_mistakes(cfg):
    untied, tied, mebibytes = _sizes(cfg)
    V, T, D = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"]
    # What comes of counting the model of `cfg` itself, whatever that says on tying.
    own, less = (tied, tied - V * D) if cfg["tie_weights"] else (untied, tied)
    return {
        "the untied number is the tied one when the config says tie_weights=True": (
            (own, less, 4 * own / 2**20)
        ),
        "the two numbers of parameters are the same; was the second model tied?": (
            (own, own, 4 * own / 2**20)
        ),
        "tied and untied are exchanged": (tied, untied, mebibytes),
        "tying saves the output head, not the table of positions": (
            (untied, untied - T * D, mebibytes)
        ),
        "tying saves one copy of the V x D weights, not both": (
            (untied, untied - 2 * V * D, mebibytes)
        ),
        "the memory is in units of a million bytes": (untied, tied, 4 * untied / 1e6),
        "the memory is that of the tied model": (untied, tied, 4 * tied / 2**20),
        "the memory is counted with 1 byte for each number": (
            (untied, tied, untied / 2**20)
        ),
        "the memory is counted with 2 bytes for each number, as for bfloat16": (
            (untied, tied, 2 * untied / 2**20)
        ),
        "the memory is in bytes": (untied, tied, 4 * untied),
        "the biases of queries, keys and values are missing where qkv_bias is True": (
            _sizes({**cfg, "qkv_bias": False})
        ),
    }


def _expect_sizes(found, cfg):
    untied, tied, mebibytes = _sizes(cfg)
    where = f"for {cfg['n_layers']} layers and tie_weights={cfg['tie_weights']} the"
    found = _numbers(found, 3, "(untied, tied, mebibytes)")
    expect_close(found[0], untied, f"{where} untied number is not right", atol=0)
    expect_close(found[1], tied, f"{where} tied number is not right", atol=0)
    memory = f"{where} memory is not right"
    # Two places are enough.
    expect_close(found[2], mebibytes, memory, atol=0.006)


# --- 4.3 Three dropout rates ----------------------------------------------------------


class _Settings(dict):
    """Reads as `cfg["n_layers"]` and `cfg.n_layers`, and can be changed by mistake."""

    __getattr__ = dict.__getitem__


@check("4.3")
def check_4_3(attempt):
    for rates in ((0.1, 0.2, 0.4), (0.0, 0.5, 0.0), (0.3, 0.3, 0.3)):
        cfg = _Settings({**TINY, "drop_rate": 0.3})
        model = call(attempt, cfg, *rates)
        is_model = isinstance(model, GPTModel)
        expect(is_model, f"the result is {describe(model)}, not a GPTModel")
        expect(
            cfg == {**TINY, "drop_rate": 0.3}, "cfg was changed; it is the caller's own"
        )
        fits = len(model.trf_blocks) == 3 and model.tok_emb.weight.shape == (29, 12)
        expect(fits, "the model has other sizes than the config")
        _expect_rates(model, *rates)
        awake = all(module.training for module in model.modules())
        expect(awake, "the model is in evaluation mode, where nothing is dropped")
    return "Three sets of rates, each in all blocks, zeros included."


def _expect_rates(model, embedding, attention, shortcut):
    asked = f"for embedding={embedding}, attention={attention}, shortcut={shortcut} "
    found = (_rate(model.drop_emb), *_rates(model.trf_blocks[0]))
    exchanged = attention != shortcut and found == (embedding, shortcut, attention)
    expect(not exchanged, "the rates of attention and shortcuts are exchanged")
    for i, block in enumerate(model.trf_blocks):
        unlike = _rates(block) != found[1:]
        expect(
            not unlike, f"block {i} has other rates than block 0; each needs its own"
        )
    words = ("after the embeddings", "on attention weights", "on the branches")
    for place, rate, wanted in zip(words, found, (embedding, attention, shortcut)):
        own = rate == 0.3 != wanted
        why = "still that of the config" if own else "not the one that was asked for"
        if own and wanted == 0:
            why = "that of the config; 0.0 is a rate like any other"
        expect(rate == wanted, f"{asked}the rate {place} is {rate}, {why}")


def _rate(module):
    """The rate of a dropout layer; whatever else stands there drops nothing."""
    return getattr(module, "p", 0.0)


def _rates(block):
    return _rate(block.att.dropout), _rate(block.drop_shortcut)


# --- 4.4 Layer normalisation from memory ----------------------------------------------


@check("4.4")
def check_4_4(attempt):
    # Numbers so close together that eps counts, in a shape of three different sizes.
    x = 0.01 * random_tensor(2, 3, 6) + 0.5
    scale, shift = 1 + random_tensor(6, seed=1), random_tensor(6, seed=2)
    before = x.clone()
    found = call(attempt, x, scale, shift)
    expect_tensor(found, (2, 3, 6), "that of x", torch.float64)
    expect(torch.equal(x, before), "x itself was changed; make a new tensor")
    right = _layer_norm(x, scale, shift)
    expect_no_slip(found, right, _norm_mistakes(x, scale, shift))
    exact, near = (torch.allclose(found, right, 0, atol) for atol in (1e-9, 1e-4))
    expect(
        exact or not near,
        "float64 numbers come out right to a few digits only; float64 stays float64, "
        "also on the way",
    )
    expect_close(found, right, "the numbers are not normalised", atol=1e-9)

    other = call(attempt, x, scale, shift, eps=0.01)
    expected = _layer_norm(x, scale, shift, eps=0.01)
    expect_close(other, expected, "eps=0.01 is passed and makes no difference", 1e-9)
    flat = call(attempt, torch.full((6,), 3.0).double(), scale, shift)
    expect_close(flat, shift, "a vector of equal numbers is not what is left", 1e-9)
    _expect_digits(attempt)
    return "Equal to LayerNorm in three dtypes, for close and equal numbers, any eps."


def _expect_digits(attempt):
    """Try numbers that are large beside their spread, where short floats lose it."""
    for dtype, spread, atol in ((torch.float32, 0.1, 0.01), (torch.bfloat16, 3, 0.03)):
        x = (301 + spread * random_tensor(6, 768, seed=3)).to(dtype)
        ones, zeros = torch.ones(768, dtype=dtype), torch.zeros(768, dtype=dtype)
        found = call(attempt, x, ones, zeros)
        expect_tensor(found, (6, 768), "that of x", dtype)
        lost = f"{dtype} numbers near 301, with a spread of {spread}, come out wrong; "
        lost += {
            torch.float32: "are the distances from the mean squared?",
            torch.bfloat16: "are mean and variance taken in float32?",
        }[dtype]
        close = torch.allclose(found.double(), _layer_norm(x.double(), 1, 0), 0, atol)
        expect(close, lost)


def _layer_norm(x, scale, shift, eps=1e-5, dim=-1, divisor=None, inside=True, mean=1):
    """Layer normalisation; the options each plant one mistake."""
    centred = x - mean * x.mean(dim=dim, keepdim=True)
    squares = (x - x.mean(dim=dim, keepdim=True)).square()
    variance = squares.sum(dim=dim, keepdim=True) / (divisor or x.shape[-1])
    root = (variance + eps).sqrt() if inside else variance.sqrt() + eps
    return scale * centred / root + shift


def _norm_mistakes(x, scale, shift):
    def outcome(**slip):
        return _layer_norm(x, scale, shift, **slip)

    plain = _layer_norm(x, 1.0, 0.0)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)
    centred = x - x.mean(dim=-1, keepdim=True)
    return {
        "the variance divides by one less than the number of entries, as torch.var "
        "does unless told otherwise": outcome(divisor=5),
        "eps is added after the root; it belongs under it": outcome(inside=False),
        "eps is not used": outcome(eps=0.0),
        "eps and the division by one less both go wrong": (
            outcome(divisor=5, inside=False)
        ),
        "the mean is not taken away": outcome(mean=0),
        "the division is by the variance, not by its root": (
            scale * centred / (variance + 1e-5) + shift
        ),
        "the mean goes, but nothing is divided": scale * centred + shift,
        "it runs over the tokens of a sequence, not over the numbers of a token": (
            outcome(dim=1, divisor=3)
        ),
        "it runs over the batch, not over the numbers of a token": (
            outcome(dim=0, divisor=2)
        ),
        "it runs over all numbers at once, not over those of each token": (
            outcome(dim=(0, 1, 2), divisor=36)
        ),
        "scale and shift are not used": plain,
        "shift is not used": scale * plain,
        "scale is not used": plain + shift,
        "the shift comes before the scale": scale * (plain + shift),
        "scale and shift are exchanged": shift * plain + scale,
    }


# --- 4.5 A block from its four parts --------------------------------------------------


@check("4.5")
def check_4_5(attempt):
    for seed in range(2):
        torch.manual_seed(seed)
        block = TransformerBlock(TINY).double().eval()
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.scale)  # so that they are not the same
            nn.init.normal_(norm.shift)
        x = 2 * random_tensor(2, 5, 12, seed=seed)
        with torch.no_grad():
            right = block(x)
            found = call(attempt, _Parts(block).eval(), x.clone())
            expect_tensor(found, (2, 5, 12), "a block keeps the shape of x")
            expect_no_slip(found, right, _block_orders(block, x))
        message = "the four parts are put together in another way than in a block"
        expect_close(found, right, message, atol=1e-9)
    return "Equal to the block itself, twice, with two different normalisations."


class _Parts(nn.Module):
    """The parts without the whole, which would give the answer away."""

    def __init__(self, block):
        super().__init__()
        for name in ("att", "ff", "norm1", "norm2", "drop_shortcut"):
            setattr(self, name, getattr(block, name))

    def forward(self, *arguments, **keywords):
        raise TypeError("this block is only its parts: put them together yourself")


def _block_orders(block, x):
    att, ff, norm1, norm2 = block.att, block.ff, block.norm1, block.norm2
    middle = x + att(norm1(x))
    post = norm1(x + att(x))
    feed_first = x + ff(norm2(x))
    swapped = x + att(norm2(x))
    return {
        "there is no shortcut around attention": (
            att(norm1(x)) + ff(norm2(att(norm1(x))))
        ),
        "there is no shortcut around the feed-forward part": ff(norm2(middle)),
        "there is no shortcut at all": ff(norm2(att(norm1(x)))),
        "the normalisations come after the sums, as in the first transformer; here "
        "they stand at the start of each branch": norm2(post + ff(post)),
        "the normalisations come after the branches": (
            x + norm1(att(x)) + norm2(ff(x + norm1(att(x))))
        ),
        "the shortcut carries the normalised x": (
            norm1(x) + att(norm1(x)) + ff(norm2(norm1(x) + att(norm1(x))))
        ),
        "both shortcuts carry normalised numbers": _normalised_shortcuts(block, x),
        "the second half starts from x, not from the result of the first": (
            x + ff(norm2(x))
        ),
        "both branches start from x, side by side": middle + ff(norm2(x)),
        "the second shortcut starts from x, not from the middle": (
            x + ff(norm2(middle))
        ),
        "the feed-forward part comes first": feed_first + att(norm1(feed_first)),
        "norm1 stands in both branches": middle + ff(norm1(middle)),
        "norm1 and norm2 are exchanged": swapped + ff(norm1(swapped)),
        "attention reads x as it is, not normalised": (
            x + att(x) + ff(norm2(x + att(x)))
        ),
        "the feed-forward part reads its input as it is, not normalised": (
            middle + ff(middle)
        ),
        "only the first half is there": middle,
        "nothing is normalised": x + att(x) + ff(x + att(x)),
    }


def _normalised_shortcuts(block, x):
    start = block.norm1(x)
    middle = block.norm2(start + block.att(start))
    return middle + block.ff(middle)


# --- 4.6 Where does a prompt begin? ---------------------------------------------------


@check("4.6")
def check_4_6(attempt):
    model = _tiny_model()
    real = torch.tensor(
        [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    ).bool()
    idx = torch.tensor(
        [[0, 0, 7, 0, 5], [0, 8, 5, 0, 0], [8, 1, 0, 2, 6], [0, 6, 2, 0, 0]]
    )
    with torch.no_grad():
        found = call(attempt, model, idx.clone(), real.clone())
        expect_tensor(found, (4, 5, 12), "one vector for each place")
        places = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        right = model.tok_emb(idx) + model.pos_emb(places)
        mistakes = _embedding_mistakes(model, idx, real, places)
        expect_no_slip(found[real], right[real], _at(mistakes, real))
        message = "a vector is not that of its token and its place"
        expect_close(found[real], right[real], message, atol=1e-9)

        alone = call(attempt, model, idx[:1, 2:], torch.ones(1, 3).bool())
        message = "a prompt without padding gives other vectors than the padded one"
        expect_close(alone, right[:1, 2:], message, atol=1e-9)
    return "Padding on the left, on the right, on both sides and none."


def _at(mistakes, real):
    return {message: outcome[real] for message, outcome in mistakes.items()}


def _embedding_mistakes(model, idx, real, places):
    tokens, table = model.tok_emb(idx), model.pos_emb
    columns = torch.arange(idx.shape[1])
    rows = torch.arange(len(idx))[:, None].expand_as(idx)
    from_the_end = real.long().flip(1).cumsum(dim=1).flip(1) - 1
    not_zero = (idx != 0).long().cumsum(dim=1) - 1
    return {
        "padding is found by the token id 0, which is a real token here, too; the mask "
        "says what is real": tokens + table(not_zero.clamp(min=0)),
        "the position is the column, so padding on the left is counted like text": (
            tokens + table(columns)
        ),
        "the positions start at 1, not at 0": tokens + table(places + 1),
        "the table of positions is asked for token ids": (
            tokens + table(idx.clamp(max=8))
        ),
        "the table of positions is asked for rows of the batch": tokens + table(rows),
        "all tokens get the first position": tokens + table(torch.zeros_like(idx)),
        "the table of positions is asked for the mask, which holds only 0 and 1": (
            tokens + table(real.long())
        ),
        "the positions are counted from the end of the prompt": (
            tokens + table(from_the_end.clamp(min=0))
        ),
        "the real tokens are counted down the batch, not along the prompt": (
            tokens + table((real.long().cumsum(dim=0) - 1).clamp(min=0))
        ),
        "there are no positions, only tokens": tokens,
        "there are no tokens, only positions": table(places),
        "token and position are multiplied, not added": tokens * table(places),
    }


# --- 4.7 Prompts of different lengths -------------------------------------------------


@check("4.7")
def check_4_7(attempt):
    model = _tiny_model(seed=1)
    calls = _counted(model)
    for prompts in ([[7, 0, 5], [2, 8], [0, 4, 9, 1, 28]], [[5, 8], [8, 0]], [[0, 1]]):
        with torch.no_grad():
            calls.clear()
            given = [list(prompt) for prompt in prompts]
            found = call(attempt, model, given)
            used = len(calls)
            right = torch.cat([model(torch.tensor([p]))[:, -1] for p in prompts])
            expect_tensor(found, tuple(right.shape), "one row of V logits for a prompt")
            expect(given == prompts, "the lists of token ids were changed")
            if len(prompts) == 3:
                expect_no_slip(found, right, _padding_mistakes(model, prompts))
        message = (
            f"for prompts of {sorted(map(len, prompts))} tokens a row is not right"
        )
        expect_close(found, right, message, atol=1e-9)
        expect(used == 1, f"the model was called {used} times; one batch is enough")
    return "Each row equals that of its prompt alone, whatever stands beside it."


def _counted(model):
    """A list that gets longer whenever the model runs, called in whatever way."""
    calls, forward = [], model.forward

    def counting(idx, attention_mask=None, cache=None):
        calls.append(idx)
        return forward(idx, attention_mask, cache)

    model.forward = counting
    return calls


def _padded(prompts, side):
    longest = max(map(len, prompts))
    rows, real = [], []
    for prompt in prompts:
        filler = [0] * (longest - len(prompt))
        ones, zeros = [1] * len(prompt), filler
        rows.append(filler + prompt if side == "left" else prompt + filler)
        real.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(rows), torch.tensor(real)


def _padding_mistakes(model, prompts):
    left, real_left = _padded(prompts, "left")
    right, real_right = _padded(prompts, "right")
    shortest = min(map(len, prompts))
    heads = torch.tensor([prompt[:shortest] for prompt in prompts])
    tails = torch.tensor([prompt[-shortest:] for prompt in prompts])
    rows = torch.arange(len(prompts))
    at_padding = (
        "the last column was taken, where with padding on the right only the "
        "longest prompt has its answer"
    )
    return {
        "padding on the left was read as text: the mask was not passed": (
            model(left)[:, -1]
        ),
        at_padding: model(right, real_right)[:, -1],
        at_padding + ", and there was no mask": model(right)[:, -1],
        "the mask is the wrong way round: it hides the prompts and shows the padding": (
            model(left, 1 - real_left)[:, -1]
        ),
        "with padding on the left the mask is that of padding on the right": (
            model(left, real_right)[:, -1]
        ),
        "all prompts were cut to the length of the shortest, at the end": (
            model(heads)[:, -1]
        ),
        "all prompts were cut to the length of the shortest, at the start": (
            model(tails)[:, -1]
        ),
        "the mask was made from the ids, but 0 is a real token here, too": (
            model(left, left != 0)[:, -1]
        ),
        "the lengths were counted from the ids, but 0 is a real token here, too": (
            model(right)[rows, (right != 0).sum(dim=1) - 1]
        ),
        "the logits are those of the first column": model(left, real_left)[:, 0],
        "these are the logits after each prompt's first token": (
            model(right, real_right)[:, 0]
        ),
    }


# --- 4.8 Knowing when to stop ---------------------------------------------------------


@check("4.8")
def check_4_8(attempt):
    return judge_writing(attempt)
