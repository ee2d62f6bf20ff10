"""The base of all configs, and positions counted over real tokens."""

import copy
import dataclasses
import math
import pickle

import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_config import (
    ModelConfig,
    check_number,
    config_of,
    end_tokens,
    extras_for,
    token_positions,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scaling(ModelConfig):
    factor: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sizes(ModelConfig):
    emb_dim: int
    rate: float
    bias: bool
    scaling: Scaling | None = None

    def __post_init__(self):
        super().__post_init__()
        check_number("rate", self.rate, above=-1)


PLAIN = {"emb_dim": 8, "rate": 0.5, "bias": True, "scaling": None}


def test_a_config_reads_like_a_dictionary():
    cfg = Sizes.of(PLAIN)
    assert cfg["emb_dim"] == cfg.emb_dim == cfg.get("emb_dim") == 8
    assert list(cfg) == list(cfg.keys()) == ["emb_dim", "rate", "bias", "scaling"]
    assert len(cfg) == 4
    assert {**cfg, "emb_dim": 16} == {**PLAIN, "emb_dim": 16}
    assert "emb_dim" in cfg
    assert "of" not in cfg
    with pytest.raises(KeyError, match="head_dim"):
        cfg["head_dim"]


def test_a_config_equals_what_has_the_same_entries():
    cfg = Sizes.of(PLAIN)
    assert cfg == PLAIN == Sizes(**PLAIN)
    assert Sizes.of(cfg) is cfg
    assert copy.deepcopy(cfg) == pickle.loads(pickle.dumps(cfg)) == cfg
    assert dataclasses.replace(cfg, emb_dim=3) == {**PLAIN, "emb_dim": 3}
    assert cfg != {**PLAIN, "emb_dim": 3}


def test_a_config_cannot_be_changed():
    cfg = Sizes.of(PLAIN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.emb_dim = 16
    with pytest.raises(TypeError, match="item assignment"):
        cfg["emb_dim"] = 16


@pytest.mark.parametrize("make", [Sizes.of, lambda cfg: Sizes(**cfg)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_dim": 0}, "emb_dim is 0: give a whole number from 1 up"),
        ({"emb_dim": 8.0}, "emb_dim is 8.0: give a whole"),
        ({"emb_dim": True}, "emb_dim is True"),
        ({"emb_dim": None}, "emb_dim is None"),
        ({"rate": "0.1"}, "rate is '0.1': give a number"),
        ({"rate": True}, "rate is True: give a number"),
        ({"rate": math.nan}, "rate is nan: give a finite number"),
        ({"rate": -math.inf}, "rate is -inf: give a finite number"),
        ({"rate": -1.0}, "rate is -1.0: give a finite number above -1"),
        ({"bias": 1}, "bias is 1: give True or False"),
        ({"bias": "yes"}, "bias is 'yes'"),
    ],
)
def test_a_field_of_another_kind_is_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make({**PLAIN, **changes})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({**PLAIN, "emb_dims": 3}, r"unknown field 'emb_dims': did you mean 'emb_dim'"),
        ({**PLAIN, "zebra": 3}, "'zebra': leave it out; known are emb_dim, rate, bias"),
        ({"bias": True}, "lacks 'emb_dim' and 'rate': give every field"),
    ],
)
def test_unknown_and_missing_fields_are_named(cfg, message):
    with pytest.raises(ValueError, match=message):
        Sizes.of(cfg)


@pytest.mark.parametrize("cfg", [None, "124M", [1, 2], 768])
def test_what_is_no_mapping_is_refused(cfg):
    with pytest.raises(TypeError, match="give a Sizes, or a dictionary"):
        Sizes.of(cfg)


def test_a_field_with_a_default_may_be_left_out():
    without = {name: PLAIN[name] for name in PLAIN if name != "scaling"}
    assert Sizes.of(without) == PLAIN


def test_a_copy_and_a_union_are_dictionaries_to_change():
    cfg = Sizes.of(PLAIN)
    changed = cfg.copy()
    changed.update({"emb_dim": 16})
    changed["rate"] = 0.25
    assert Sizes.of(changed).emb_dim == 16
    assert cfg == PLAIN
    assert cfg | {"emb_dim": 4} == {**PLAIN, "emb_dim": 4}
    assert {"emb_dim": 4, "more": 1} | cfg == {**PLAIN, "more": 1}
    assert type(cfg | cfg) is dict


# --- models of other making -----------------------------------------------------------


class IdsAlone(torch.nn.Module):
    def forward(self, in_idx):
        return in_idx


class AnyName(torch.nn.Module):
    def forward(self, *idx, **extras):
        return extras


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1))
def test_a_mask_is_left_out_only_where_padding_is_on_the_right(rows):
    mask = torch.tensor(rows)
    on_the_right = all(sorted(row, reverse=True) == row for row in rows)
    for kind in (mask, mask.int()):
        if on_the_right:
            assert extras_for(IdsAlone(), attention_mask=kind) == {}
        else:
            with pytest.raises(ValueError, match="IdsAlone.forward takes no attention"):
                extras_for(IdsAlone(), attention_mask=kind)
    found = extras_for(AnyName(), attention_mask=mask, cache=None)
    assert found == {"attention_mask": mask}


def test_a_model_without_sizes_or_names_is_told():
    model = AnyName()
    with pytest.raises(ValueError, match="The sizes of this AnyName .* self.cfg"):
        config_of(model)
    model.cfg = PLAIN
    assert config_of(model) is PLAIN


# --- positions ------------------------------------------------------------------------


def counted(row):
    """By hand: a place has the number of real tokens before it, at least 0."""
    return [max(0, sum(row[: i + 1]) - 1) for i in range(len(row))]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1), st.data())
def test_positions_count_real_tokens_only(rows, data):
    past = data.draw(st.integers(0, 5))
    real, idx = torch.tensor(rows), torch.zeros(len(rows), 6 - past)
    expected = [counted(row)[past:] for row in rows]
    for mask in (real, real.long(), real.int()):
        positions = token_positions(idx, mask, past)
        assert positions.tolist() == expected
        assert positions.dtype == torch.int64


def test_without_a_mask_all_tokens_are_real():
    positions = token_positions(torch.zeros(3, 4), past=2)
    assert positions.tolist() == [2, 3, 4, 5]
    assert positions.dtype == torch.int64
    all_real = torch.ones(3, 6, dtype=torch.bool)
    assert (token_positions(torch.zeros(3, 4), all_real, 2) == positions).all()


def test_positions_stay_on_the_device_of_the_ids():
    idx = torch.zeros(1, 4, device="meta")
    assert token_positions(idx).device.type == "meta"


def test_a_mask_that_leaves_out_the_cached_tokens_is_refused():
    with pytest.raises(ValueError, match=r"must be \(1, 6\).* 2 cached and 4 new"):
        token_positions(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), past=2)


# --- Where an answer ends -------------------------------------------------------------


def test_an_answer_ends_at_every_token_that_published_settings_name():
    class OwnEnd:
        eot_token = 7

    class NoEnd:
        eot_token = None

    class TwoEnds(tiktoken.Encoding):
        eot_token = 2

    assert end_tokens(tiktoken.get_encoding("gpt2")) == (50_256,)
    assert end_tokens(OwnEnd()) == (7,)
    assert end_tokens(NoEnd()) == ()
    special = {"<|im_start|>": 1, "<|im_end|>": 2, "<|endoftext|>": 3, "<pad>": 4}
    chat = TwoEnds(
        "chat", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens=special
    )
    assert end_tokens(chat) == (2, 3)
