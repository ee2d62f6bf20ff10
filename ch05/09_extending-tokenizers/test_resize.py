"""New tokens leave the old ones alone: their ids, their rows, their logits."""

import copy
import math

import pytest
import tiktoken
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bpe import BPETokenizer, train_tokenizer
from checkpoints import checkpoint_info, load_checkpoint, save_checkpoint
from dataloader import SimpleTokenizerV2, build_vocabulary, encode_text
from gpt import GPT_CONFIG_124M, GPTModel, count_parameters, initialise_like_gpt2
from gpt_generate import generate
from llama import SMOLLM2_135M, LlamaModel
from resize import (
    ExtendedTokenizer,
    extend_encoding,
    hide_padding,
    logits_apart,
    mask_padding,
    mean_rows,
    number_tokens,
    padded_size,
    random_rows,
    resize_vocabulary,
    rows_of_pieces,
    token_tables,
    train_only_rows,
    with_noise,
    zero_rows,
)
from simple_tokenizer_v3 import SimpleTokenizerV3, split_keeping_white_space

NEW = ["<|ask|>", "<|reply|>", "<|done|>"]
GPT2 = tiktoken.get_encoding("gpt2")
LONGER = extend_encoding("gpt2", NEW)
BPE = train_tokenizer("low lower lowest, slow slower <|ask|>", vocab_size=262)
WORDS = build_vocabulary(
    ["the", "lamp", "was", "lit", "."], ["<|endoftext|>", "<|unk|>"]
)
# Marks, parts of marks and what stands around them.
words = st.sampled_from(
    [*NEW, "<|endoftext|>", "<|", "ask", "|>", "<|ask", "low", "\n"]
)
texts = st.lists(words | st.text(max_size=6), max_size=10).map("".join)
some = settings(max_examples=150, deadline=None)


def chosen(*tokens):
    return st.sets(st.sampled_from([*tokens]))


# --- Tokens --------------------------------------------------------------------------


def test_all_old_tokens_of_gpt2_keep_their_ids():
    assert LONGER.n_vocab == GPT2.n_vocab + 3 == 50260
    old, now = (
        [encoding.decode_single_token_bytes(i) for i in range(50257)]
        for encoding in (GPT2, LONGER)
    )
    assert now == old
    assert [LONGER.encode_single_token(token) for token in NEW] == [50257, 50258, 50259]
    assert LONGER.eot_token == GPT2.eot_token
    assert LONGER.special_tokens_set == {"<|endoftext|>", *NEW}
    assert LONGER.name != "gpt2"
    assert tiktoken.get_encoding("gpt2").n_vocab == 50257


@some
@given(texts)
@example("<|ask|>" * 3)
@example("<|as<|ask|>k|>")
def test_typed_text_never_becomes_a_new_token(text):
    """Known mistake: special tokens not refused by default."""
    typed = LONGER.encode(text, disallowed_special=())
    assert typed == GPT2.encode(text, disallowed_special=())
    assert typed == LONGER.encode_ordinary(text)
    assert max(typed, default=0) < 50256
    assert LONGER.decode(typed) == text
    if any(token in text for token in LONGER.special_tokens_set):
        with pytest.raises(ValueError, match="special token"):
            LONGER.encode(text)
    else:
        assert LONGER.encode(text) == typed


def tried(tokenizer, text, **options):
    """The ids, or that the text is refused."""
    try:
        return tokenizer.encode(text, **options)
    except ValueError:
        return "refused"


PAIRS = {
    "tiktoken": (LONGER, ExtendedTokenizer(GPT2, NEW), "<|endoftext|>"),
    "bpe": (
        BPETokenizer(BPE.new_ids, ["<|endoftext|>", *NEW], BPE.pattern),
        ExtendedTokenizer(BPE, NEW),
        "<|endoftext|>",
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
@some
@given(st.data(), texts)
def test_a_tokenizer_that_is_wrapped_equals_one_that_is_made_anew(kind, data, text):
    anew, wrapped, old = PAIRS[kind]
    allowed = data.draw(st.just("all") | chosen(old, *NEW))
    disallowed = data.draw(st.just("all") | st.just(()) | chosen(old, *NEW))
    options = {"allowed_special": allowed, "disallowed_special": disallowed}
    assert tried(wrapped, text, **options) == tried(anew, text, **options)
    assert tried(wrapped, text) == tried(anew, text)
    ids = anew.encode(text, allowed_special="all")
    assert wrapped.decode(ids) == anew.decode(ids) == text
    assert wrapped.encode_ordinary(text) == anew.encode_ordinary(text)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_wrapped_tokenizer_has_the_same_properties(kind):
    anew, wrapped, _ = PAIRS[kind]
    assert wrapped.n_vocab == anew.n_vocab
    assert wrapped.eot_token == anew.eot_token
    for i in range(wrapped.n_vocab - 5, wrapped.n_vocab):
        same = anew.decode_single_token_bytes(i)
        assert wrapped.decode_single_token_bytes(i) == same
    with pytest.raises(KeyError):
        wrapped.decode([wrapped.n_vocab])


def test_half_characters_on_both_sides_of_a_new_token_stay_halves():
    wrapped, mark = PAIRS["tiktoken"][1], LONGER.encode_single_token("<|done|>")
    first, *rest = GPT2.encode("\U0001f352")
    assert wrapped.decode([first, mark, *rest]) == LONGER.decode([first, mark, *rest])
    assert wrapped.decode([torch.tensor(mark), first, *rest]) == "<|done|>\U0001f352"


def test_the_words_of_chapter_2_get_a_switch():
    """Alone they read every mark in their vocabulary as the token."""
    plain = SimpleTokenizerV2({**WORDS, "<|ask|>": len(WORDS)})
    assert plain.encode("the <|ask|> lamp")[1] == len(WORDS)
    wrapped = ExtendedTokenizer(SimpleTokenizerV2(WORDS), NEW)
    assert wrapped.n_vocab == len(WORDS) + 3
    typed = wrapped.encode("the <|ask|> lamp")
    assert typed == wrapped.old.encode("the <|ask|> lamp")
    assert typed[1] == WORDS["<|unk|>"]
    meant = wrapped.encode("the <|ask|> lamp", allowed_special={"<|ask|>"})
    assert meant == [WORDS["the"], len(WORDS), WORDS["lamp"]]
    assert wrapped.encode("the <|ask|> lamp", allowed_special="all") == meant
    with pytest.raises(ValueError, match=r"'<\|ask\|>'"):
        wrapped.encode("the <|ask|>", disallowed_special="all")
    assert wrapped.decode(meant) == "the<|ask|>lamp"
    assert encode_text("lamp<|endoftext|>", wrapped) == [
        WORDS["lamp"],
        WORDS["<|endoftext|>"],
    ]


def test_bytes_at_the_end_of_a_vocabulary_do_not_move():
    """Known mistake: a longer vocabulary, after which every byte has another id."""
    pieces = build_vocabulary(split_keeping_white_space("The lamp was lit."))
    old = SimpleTokenizerV3(pieces)
    moved = SimpleTokenizerV3({**pieces, "<|ask|>": len(pieces)})
    assert moved.encode("blue") != old.encode("blue")
    wrapped = ExtendedTokenizer(old, NEW)
    text = "The lamp was blue.<|ask|>"
    assert wrapped.encode(text) == old.encode(text)
    ids = wrapped.encode(text, allowed_special={"<|ask|>"})
    assert ids[-1] == old.n_vocab
    assert wrapped.decode(ids) == text


@pytest.mark.parametrize(
    "tokens", [[""], ["<|a|>", "<|a|>"], ["<|endoftext|>"], ["the"]]
)
def test_a_token_without_a_text_of_its_own_is_refused(tokens):
    with pytest.raises(ValueError, match="is empty, given twice or a token already"):
        extend_encoding("gpt2", [*tokens])
    with pytest.raises(ValueError, match="is empty, given twice or a token already"):
        ExtendedTokenizer(SimpleTokenizerV2(WORDS), tokens)
    with pytest.raises(ValueError, match="a token already"):
        ExtendedTokenizer(GPT2, tokens)


def test_one_string_is_not_a_list_of_tokens():
    """Known mistake: its characters are looked for, and nothing is allowed."""
    with pytest.raises(TypeError, match="not one string"):
        number_tokens("<|ask|>", 0)
    wrapped = ExtendedTokenizer(GPT2, NEW)
    for name in ("allowed_special", "disallowed_special"):
        with pytest.raises(TypeError, match="give a set of tokens"):
            wrapped.encode("<|ask|>", **{name: "<|ask|>"})


@pytest.mark.parametrize("kind", PAIRS)
@some
@given(texts)
def test_a_tokenizer_that_is_wrapped_twice_equals_one_that_is_made_anew(kind, text):
    """Known mistake: the second extension asks the first for a default it has not."""
    anew, wrapped, _ = PAIRS[kind]
    twice = ExtendedTokenizer(ExtendedTokenizer(wrapped.old, NEW[:1]), NEW[1:])
    assert twice.n_vocab == anew.n_vocab
    assert tried(twice, text) == tried(anew, text)
    assert twice.encode_ordinary(text) == anew.encode_ordinary(text)
    for allowed in ("all", {NEW[0]}, {NEW[2]}):
        options = {"allowed_special": allowed, "disallowed_special": ()}
        assert twice.encode(text, **options) == anew.encode(text, **options)
    ids = anew.encode(text, allowed_special="all")
    assert twice.decode(ids) == text


def test_an_old_tokenizer_without_a_switch_goes_on_reading_its_own_tokens():
    wrapped = ExtendedTokenizer(SimpleTokenizerV2(WORDS), NEW)
    typed = wrapped.encode_ordinary("the <|endoftext|> <|ask|>")
    assert typed == [WORDS["the"], WORDS["<|endoftext|>"], WORDS["<|unk|>"]]


def test_an_encoding_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"'gpt-2' is none of .*'gpt2'"):
        extend_encoding("gpt-2", NEW)


def test_tokens_may_come_one_by_one():
    assert extend_encoding("gpt2", iter(NEW)).n_vocab == 50260
    assert ExtendedTokenizer(GPT2, iter(NEW)).n_vocab == 50260


# --- Models --------------------------------------------------------------------------

SIZES = {"vocab_size": 50, "context_length": 16, "emb_dim": 12, "n_heads": 3}


def gpt(tied=False, bias=False, dtype=torch.float32, **sizes):
    torch.manual_seed(0)
    cfg = {**GPT_CONFIG_124M, **SIZES, "n_layers": 1, "drop_rate": 0.0, **sizes}
    model = GPTModel({**cfg, "tie_weights": tied})
    if bias:
        model.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"])
    return model.to(dtype).eval()


def llama(tied=False, dtype=torch.float32):
    torch.manual_seed(0)
    cfg = {**SMOLLM2_135M, **SIZES, "n_kv_groups": 1, "head_dim": 4, "n_layers": 1}
    return LlamaModel({**cfg, "hidden_dim": 16, "tie_weights": tied}).to(dtype).eval()


def shared(bias=False, dtype=torch.float32):
    """Tied as in other libraries: two layers with one parameter."""
    model = gpt(bias=bias, dtype=dtype)
    model.out_head.weight = model.tok_emb.weight
    return model


MODELS = {
    "GPT": gpt,
    "GPT, tied": lambda **o: gpt(tied=True, **o),
    "GPT, bias": lambda **o: gpt(bias=True, **o),
    "GPT, one parameter": shared,
    "GPT, one parameter, bias": lambda **o: shared(bias=True, **o),
    "Llama": llama,
    "Llama, tied": lambda **o: llama(tied=True, **o),
}
IDS = torch.tensor([[7, 1, 4, 0, 49], [3, 3, 9, 12, 30]])
STARTS = {
    "mean": mean_rows,
    "zeros": zero_rows,
    "random": random_rows(generator=torch.Generator().manual_seed(1)),
    "pieces": rows_of_pieces([[3, 9], [12]]),
    "noise": with_noise(mean_rows, generator=torch.Generator().manual_seed(2)),
}


@torch.no_grad()
def logits_of(model, ids=IDS):
    return model(ids)


def read_by_head(model, ids=IDS):
    """The vectors after the last norm."""
    found = []
    hook = model.final_norm.register_forward_hook(lambda *a: found.append(a[-1]))
    logits_of(model, ids)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", MODELS)
def test_old_rows_and_logits_stay(kind, dtype, start):
    """Known mistake: a new head with a bias drawn at random.

    Rows and what the head reads are the same to the last bit, and so is a product with
    the old rows. Libraries may cut a product of another size into other parts: in
    float64 some of these small ones differ in the last place.
    """
    model = MODELS[kind](dtype=dtype)
    before, old = logits_of(model), copy.deepcopy(model)
    assert resize_vocabulary(model, 53, STARTS[start]) is model
    after = logits_of(model)
    assert after.shape == (2, 5, 53)
    assert after.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert torch.allclose(after[..., :50], before, rtol=bound, atol=bound)
    assert torch.equal(read_by_head(model), read_by_head(old))
    for new, table in zip(token_tables(model), token_tables(old), strict=True):
        assert new.dtype == dtype
        assert len(new) == 53
        assert torch.equal(new[:50], table)
    assert model.cfg["vocab_size"] == model.tok_emb.num_embeddings == 53
    assert getattr(model.out_head, "out_features", 53) == 53
    assert logits_of(model, torch.tensor([[52, 50]])).isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_tied_stays_tied_and_untied_untied(kind):
    """Known mistake: "tied" weights that are copied."""
    model = MODELS[kind]()
    tied = model.out_head.weight is model.tok_emb.weight
    names, number = list(model.state_dict()), count_parameters(model)
    resize_vocabulary(model, 53)
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    assert list(model.state_dict()) == names
    tables = token_tables(model)
    assert count_parameters(model) == number + 3 * sum(
        math.prod(table.shape[1:]) for table in tables
    )
    with torch.no_grad():
        model.tok_emb.weight[51] = 5.0
    assert bool((model.out_head.weight[51] == 5.0).all()) == tied
    again = copy.deepcopy(model)
    assert (again.out_head.weight is again.tok_emb.weight) == tied
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("kind", MODELS)
def test_a_mean_row_gets_the_mean_logit(kind):
    model = MODELS[kind](dtype=torch.float64)
    with torch.no_grad():
        model.out_head.weight.add_(torch.randn(12))  # a mean that is not near 0
    before = logits_of(model)
    after = logits_of(resize_vocabulary(model, 53))
    mean = before.mean(dim=-1, keepdim=True)
    assert torch.allclose(after[..., 50:], mean.expand(2, 5, 3), atol=1e-6)
    assert torch.allclose(model.tok_emb.weight[51], model.tok_emb.weight[:50].mean(0))


def test_a_row_of_pieces_is_their_mean_and_the_bias_too():
    model = gpt(bias=True)
    resize_vocabulary(model, 53, STARTS["pieces"])
    for table in token_tables(model):
        assert torch.allclose(table[50], (table[3] + table[9]) / 2)
        assert torch.equal(table[51], table[12])
        assert torch.allclose(table[52], table[:50].mean(dim=0))
    zeros = resize_vocabulary(gpt(bias=True), 51, zero_rows)
    assert not logits_of(zeros)[..., 50].any()


@some
@given(
    st.integers(1, 30),
    st.integers(1, 5),
    st.floats(-200, 200),
    st.floats(0.1, 30),
    st.integers(0, 9),
)
def test_mean_rows_cost_at_most_what_the_bound_says(V, N, level, spread, seed):
    torch.manual_seed(seed)
    table = spread * torch.randn(V, 4, dtype=torch.float64)
    table[:, 0] += level
    x = torch.tensor([1.0, 0.3, -0.5, 2.0], dtype=torch.float64)
    old = table @ x
    longer = torch.cat((table, mean_rows(table, N))) @ x
    share = longer.softmax(dim=-1)[V:]
    assert (share <= 1 / (V + N) + 1e-12).all()
    rise = longer.logsumexp(dim=-1) - old.logsumexp(dim=-1)
    assert -1e-9 <= rise <= math.log1p(N / V) + 1e-9


def test_mean_rows_and_pieces_follow_when_all_logits_are_moved():
    """The old probabilities are the same at every level, the new ones should be."""
    table, x = torch.randn(50, 4, dtype=torch.float64), torch.ones(4).double()
    share = {}
    for level in (0.0, -20.0, 20.0):
        moved = table + level * x / 4
        for name, start in STARTS.items():
            longer = torch.cat((moved, start(moved, 2))) @ x
            share[name, level] = longer.softmax(dim=-1)[50:].sum().item()
    for name in ("mean", "pieces", "noise"):
        rel = 0.2 if name == "noise" else 1e-6  # the numbers are drawn each time
        assert share[name, -20] == pytest.approx(share[name, 0], rel=rel)
        assert share[name, 20] == pytest.approx(share[name, 0], rel=rel)
    for name in ("zeros", "random"):
        assert share[name, -20] > 0.99
        assert share[name, 20] < 1e-4


def test_mean_rows_are_one_row_and_noise_tells_them_apart():
    """Known mistake: two marks that begin as the same row mean the same."""
    table = torch.randn(50, 12)
    plain = mean_rows(table, 3)
    assert torch.equal(plain[0], plain[1])
    generator = torch.Generator().manual_seed(3)
    noise = with_noise(mean_rows, 0.02, generator)(table, 400) - plain[0]
    assert noise.std().item() == pytest.approx(0.02, rel=0.05)
    assert len(noise.unique(dim=0)) == 400


def test_the_mean_is_summed_in_float32():
    table = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    table[0] = 3.0
    assert torch.equal(mean_rows(table, 1), torch.ones(1, 2, dtype=torch.bfloat16))
    narrow = torch.zeros(2, dtype=torch.bfloat16)
    for row in table:
        narrow += row
    assert (narrow / 4096 < 0.5).all()  # what would come out otherwise


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_size_changes_nothing_and_fewer_rows_are_refused(kind):
    model = MODELS[kind]()
    before, cfg = token_tables(model), model.cfg
    resize_vocabulary(model, 50)
    assert all(a is b for a, b in zip(token_tables(model), before, strict=True))
    assert model.cfg is cfg
    for n_vocab in (49, 0, -1):
        with pytest.raises(ValueError, match="rows are in use"):
            resize_vocabulary(model, n_vocab)
    with pytest.raises(ValueError, match="49, but 50 rows"):
        resize_vocabulary(model, 49, multiple=64)
    assert all(a is b for a, b in zip(token_tables(model), before, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"used": 60},
        {"used": 51},
        {"used": 0},
        {"used": -1},
        {"multiple": 0},
        {"multiple": -8},
    ],
)
def test_rows_that_are_not_there_cannot_be_in_use(options):
    """Known mistake: `used` is the new size, and no row is added, without a word."""
    model = gpt()
    before = token_tables(model)
    with pytest.raises(ValueError, match="used is .* multiple is"):
        resize_vocabulary(model, 60, **options)
    assert all(a is b for a, b in zip(token_tables(model), before, strict=True))


def test_a_head_of_another_kind_is_refused_before_anything_changes():
    model = gpt()
    model.out_head = nn.Sequential(model.out_head)
    with pytest.raises(TypeError, match="Sequential"):
        resize_vocabulary(model, 53)
    assert len(model.tok_emb.weight) == model.cfg["vocab_size"] == 50


def test_frozen_tables_stay_frozen_and_layers_stay_the_same_objects():
    model = gpt()
    embedding, head = model.tok_emb, model.out_head
    embedding.weight.requires_grad_(False)
    resize_vocabulary(model, 53)
    assert model.tok_emb is embedding
    assert model.out_head is head
    assert not model.tok_emb.weight.requires_grad
    assert model.out_head.weight.requires_grad
    assert all(table.is_leaf for table in token_tables(model))


@pytest.mark.parametrize("tied", [False, True])
def test_a_longer_model_goes_through_a_checkpoint(tied, tmp_path):
    model = resize_vocabulary(gpt(tied=tied), 53)
    save_checkpoint(tmp_path, model)
    config = checkpoint_info(tmp_path)["config"]
    assert config["vocab_size"] == 53
    again = GPTModel(config).eval()
    load_checkpoint(tmp_path, again)
    assert torch.equal(logits_of(again), logits_of(model))


# --- Training ------------------------------------------------------------------------

NEW_IDS = torch.tensor([[7, 50, 4, 52, 1], [51, 3, 50, 2, 0]])


def step(model, optimizer, ids=IDS):
    logits = model(ids)[:, :-1]
    optimizer.zero_grad()
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adam, all maxima": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["GPT", "GPT, tied", "GPT, bias", "Llama, tied"])
def test_an_optimizer_takes_its_history_along(kind, name):
    model = MODELS[kind]()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer)
    old = {id(p): optimizer.state[p] for p in model.parameters()}
    old = {n: copy.deepcopy(old[id(p)]) for n, p in model.named_parameters()}
    resize_vocabulary(model, 53, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}
    for n, p in model.named_parameters():
        state = optimizer.state[p]
        assert state.keys() == old[n].keys()
        for key, before in old[n].items():
            if not torch.is_tensor(before) or before.ndim == 0:
                assert state[key] == before
                continue
            assert state[key].shape == p.shape
            assert torch.equal(state[key][: len(before)], before)
            assert not state[key][len(before) :].any()
    before = [table.detach().clone() for table in token_tables(model)]
    step(model, optimizer, NEW_IDS)
    for table, was in zip(token_tables(model), before, strict=True):
        assert (table != was)[50:].reshape(3, -1).any(dim=1).all()


def test_without_it_the_optimizer_moves_tables_that_nobody_reads():
    """Known mistake: training goes on, and the tables of the model stand still."""
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    resize_vocabulary(model, 53)
    before = [table.detach().clone() for table in token_tables(model)]
    step(model, optimizer, NEW_IDS)
    for table, was in zip(token_tables(model), before, strict=True):
        assert torch.equal(table, was)


@pytest.mark.parametrize("kind", ["GPT, tied", "GPT"])
def test_an_optimizer_whose_notes_cannot_grow_is_refused(kind):
    """Adafactor keeps sums over rows and over columns; the next step would fail."""
    model = MODELS[kind]()
    optimizer = torch.optim.Adafactor(model.parameters())
    tables = token_tables(model)
    resize_vocabulary(model, 50, optimizer=optimizer)
    step(model, optimizer)
    kept = [dict(optimizer.state[table]) for table in tables]
    with pytest.raises(ValueError, match=r"row_var of the optimizer is \(50, 1\)"):
        resize_vocabulary(model, 53, optimizer=optimizer)
    for table, same, notes in zip(tables, token_tables(model), kept, strict=True):
        assert same is table
        assert optimizer.state[table] == notes
    assert model.cfg["vocab_size"] == 50
    step(model, optimizer)


def test_rows_filled_in_again_have_no_history():
    model = gpt()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer)
    resize_vocabulary(model, 48, used=45, optimizer=optimizer)
    state = optimizer.state[model.out_head.weight]
    assert state["exp_avg"][:45].any()
    assert not state["exp_avg"][45:].any()


@pytest.mark.parametrize("kind", MODELS)
def test_only_the_new_rows_are_trained(kind):
    model = resize_vocabulary(MODELS[kind](), 53)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows, _ = train_only_rows(model, 50)
    assert [id(p) for p in rows] == [id(table) for table in token_tables(model)]
    optimizer = torch.optim.AdamW(rows, lr=0.01, weight_decay=0)
    for _ in range(5):
        step(model, optimizer, NEW_IDS)
    for name, value in model.state_dict().items():
        if len(value) == 53:
            assert torch.equal(value[:50], before[name][:50])
            assert (value != before[name])[50:].reshape(3, -1).any(dim=1).all()
        else:
            assert torch.equal(value, before[name])


def old_rows_get_gradients(model):
    model.zero_grad()
    model(NEW_IDS).sum().backward()
    return [bool(table.grad[:50].any()) for table in token_tables(model)]


def test_hooks_hold_until_they_are_removed():
    """Known mistake: a handle that is thrown away, and rows that never learn again."""
    model = resize_vocabulary(gpt(), 53)
    _, handles = train_only_rows(model, 50)
    assert old_rows_get_gradients(model) == [False, False]
    model.requires_grad_(True)
    assert old_rows_get_gradients(model) == [False, False]
    for handle in handles:
        handle.remove()
    assert old_rows_get_gradients(model) == [True, True]


def test_a_longer_table_needs_new_hooks():
    model = resize_vocabulary(gpt(), 53)
    train_only_rows(model, 50)
    resize_vocabulary(model, 54)
    assert old_rows_get_gradients(model) == [True, True]  # as its docstring says
    train_only_rows(model, 50)
    assert old_rows_get_gradients(model) == [False, False]


def test_weight_decay_moves_the_rows_whose_gradient_is_zero():
    """Known mistake: AdamW as it comes, whose decay asks no gradient."""
    model = resize_vocabulary(gpt(), 53)
    before = model.tok_emb.weight.detach().clone()
    optimizer = torch.optim.AdamW(train_only_rows(model, 50)[0], lr=0.01)
    step(model, optimizer, NEW_IDS)
    moved = model.tok_emb.weight.detach()[:50] / before[:50]
    assert torch.allclose(moved, torch.tensor(1 - 0.01 * 0.01))


def test_a_new_row_of_an_old_adam_begins_with_longer_steps():
    """Its first step is (1 - 0.9) / sqrt(1 - 0.999) = 3.16 times the learning rate."""
    table = nn.Embedding(4, 2)
    model = nn.Module()
    model.tok_emb, model.out_head = table, nn.Linear(2, 4, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3_000):
        optimizer.zero_grad()
        table(torch.tensor([0])).sum().backward()
        optimizer.step()
    model.cfg = gpt().cfg
    resize_vocabulary(model, 5, optimizer=optimizer)
    before = table.weight.detach().clone()
    optimizer.zero_grad()
    table(torch.tensor([0, 4])).sum().backward()
    optimizer.step()
    moved = (before - table.weight).abs()[:, 0] / 0.01
    assert moved[0].item() == pytest.approx(1.0, rel=0.01)
    assert moved[4].item() == pytest.approx(0.1 / math.sqrt(0.001), rel=0.05)


# --- Padding -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_vocab", "multiple", "rows"),
    [
        (50257, 64, 50304),
        (50257, 128, 50304),
        (49152, 128, 49152),
        (1, 64, 64),
        (7, 1, 7),
    ],
)
def test_the_next_multiple(n_vocab, multiple, rows):
    assert padded_size(n_vocab, multiple) == rows


@pytest.mark.parametrize("kind", MODELS)
def test_padded_rows_change_no_logit_and_are_never_written(kind):
    model = MODELS[kind]()
    before = logits_of(model)
    plain = generate(model, IDS, max_new_tokens=6, context_size=16)
    resize_vocabulary(model, 50, multiple=64)
    with torch.no_grad():
        model.out_head.weight[50:] = 9 * torch.randn(14, 12)
    after = logits_of(model)
    assert model.tok_emb.num_embeddings == 64
    assert torch.allclose(after[..., :50], before, atol=1e-6)
    assert (after.argmax(dim=-1) >= 50).any(), "padding that would be chosen"
    handle = hide_padding(model, 50)
    masked = logits_of(model)
    assert masked[..., 50:].eq(-math.inf).all()
    assert torch.equal(generate(model, IDS, max_new_tokens=6, context_size=16), plain)
    for seed in range(3):
        options = {"temperature": 5.0, "generator": torch.Generator().manual_seed(seed)}
        ids = generate(model, IDS, max_new_tokens=8, context_size=16, **options)
        assert ids.max() < 50
    handle.remove()
    assert logits_of(model).isfinite().all()


def test_masked_padding_changes_no_loss_and_gets_no_gradient():
    model = gpt(tied=True)
    targets = IDS.roll(-1, dims=1)

    def loss():
        return F.cross_entropy(model(IDS).flatten(0, 1), targets.flatten())

    loss().backward()
    before, gradient = loss().item(), model.tok_emb.weight.grad.clone()
    resize_vocabulary(model, 50, multiple=64)
    assert loss().item() > before
    hide_padding(model, 50)
    loss().backward()
    assert loss().item() == pytest.approx(before, abs=1e-6)
    assert torch.allclose(model.tok_emb.weight.grad[:50], gradient, atol=1e-6)
    assert not model.tok_emb.weight.grad[50:].any()


def test_logits_that_are_masked_are_others():
    logits = torch.zeros(2, 3, 8)
    assert mask_padding(logits, 5).exp().sum(dim=-1).eq(5).all()
    assert not logits.any()
    assert torch.equal(mask_padding(logits, 8), logits)


def test_padding_is_given_to_new_tokens_before_the_table_grows():
    """Known mistake: resized to the tokenizer's length, which takes rows away."""
    model = resize_vocabulary(gpt(), 50, zero_rows, multiple=64)
    real = [table.detach()[:50].clone() for table in token_tables(model)]
    with pytest.raises(ValueError, match="say so with `used`"):
        resize_vocabulary(model, 53)
    resize_vocabulary(model, 53, used=50)
    for table, rows in zip(token_tables(model), real, strict=True):
        assert len(table) == 64
        assert torch.equal(table[:50], rows)
        assert torch.allclose(table[52], rows.mean(dim=0), atol=1e-6)  # no padding
    resize_vocabulary(model, 70, used=53, multiple=64)
    assert len(model.tok_emb.weight) == model.cfg["vocab_size"] == 128


# --- Real vocabularies ---------------------------------------------------------------


KINDS = {
    "tied": {"tied": True},
    "untied": {},
    "bias": {"bias": True},
}


def gap(found, wanted):
    """The largest difference, measured against the largest number."""
    return (found - wanted).abs().max() / wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_gpt2s_vocabulary_keeps_all_logits(kind):
    """Known mistake: "the same to the last bit", tried on one length of text.

    50,257 is odd. With few tokens, a library may add up the last old logit in another
    order once the table is longer; all other numbers stay as they are.
    """
    model = gpt(
        vocab_size=50257, emb_dim=768, n_heads=12, context_length=100, **KINDS[kind]
    )
    if kind == "tied":
        initialise_like_gpt2(model)
    texts = [torch.arange(T)[None] * 501 for T in (1, 2, 4, 100)]
    before = [(logits_of(model, ids), read_by_head(model, ids)) for ids in texts]
    old = [table.detach().clone() for table in token_tables(model)]
    resize_vocabulary(model, LONGER.n_vocab)
    for table, was in zip(token_tables(model), old, strict=True):
        assert torch.equal(table[:50257], was)
    for ids, (logits, vectors) in zip(texts, before, strict=True):
        assert torch.equal(read_by_head(model, ids), vectors)
        after = logits_of(model, ids)
        assert after.shape[-1] == 50260
        assert gap(after[..., :50257], logits) <= 1e-5
        if kind != "bias":
            apart = logits_apart(vectors, model.out_head.weight, 50257)
            assert torch.equal(apart[..., :50257], logits)
            assert gap(apart, after) <= 1e-5


@pytest.mark.parametrize("level", [-100.0, 100.0])
def test_far_logits_stay_as_nearly_as_their_size_allows(level):
    """Known mistake: "to 1e-6", found on random weights, whose logits lie near zero.

    What is rounded grows with the logit, so a bound has to be a relative one.
    """
    model = gpt(vocab_size=50257, emb_dim=768, n_heads=12)
    with torch.no_grad():  # one product of the 768 moves all logits
        model.final_norm.scale[0], model.final_norm.shift[0] = 0, 10
        model.out_head.weight[:, 0] = level / 10
    texts = [torch.arange(T)[None] * 501 for T in (1, 2, 4, 12)]
    before = [(logits_of(model, ids), read_by_head(model, ids)) for ids in texts]
    resize_vocabulary(model, LONGER.n_vocab)
    for ids, (logits, vectors) in zip(texts, before, strict=True):
        assert abs(logits.mean() - level) < 3
        assert torch.equal(read_by_head(model, ids), vectors)
        assert gap(logits_of(model, ids)[..., :50257], logits) <= 1e-5
        apart = logits_apart(vectors, model.out_head.weight, 50257)
        assert torch.equal(apart[..., :50257], logits)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_move_into_padding_change_no_bit_of_old_logits(kind):
    model = gpt(vocab_size=50257, emb_dim=96, **KINDS[kind])
    resize_vocabulary(model, 50257, zero_rows, multiple=64)
    texts = [torch.arange(T)[None] * 501 for T in (1, 2, 4, 16)]
    before = [logits_of(model, ids)[..., :50257] for ids in texts]
    resize_vocabulary(model, LONGER.n_vocab, used=50257)
    for ids, logits in zip(texts, before, strict=True):
        assert torch.equal(logits_of(model, ids)[..., :50257], logits)
