"""What every language model of the course keeps, whatever its architecture and weights.

A chapter's tests derive a class from `ModelContract` and say how its models are made:

    class TestLlama(ModelContract):
        tiny = TINY
        configs = staticmethod(configs)
        make_model = LlamaModel
        make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
        generate = staticmethod(generate_text_simple)

Models are compared with themselves, in float64: cached = uncached, batched = single,
padding changes no answer, a future token no past one, and so on. What is special to an
architecture, above all that it equals a reference implementation, has tests of its own.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

CONTEXT = 10
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}

# One method serves many classes, which hypothesis takes for a mistake.
many_classes = [HealthCheck.differing_executors]
some = settings(max_examples=20, deadline=None, suppress_health_check=many_classes)
seeds = st.integers(min_value=0, max_value=2**32 - 1)
sides = pytest.mark.parametrize("side", ["left", "right"])


def random_ids(*shape: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Return token ids of a shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, shape, generator=generator)


def close(actual: Tensor, expected: Tensor, bound: float | None = None) -> bool:
    """Return whether two tensors agree within the bound for their type.

    Not-a-numbers never do; another shape or dtype fails at once.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    bound = bound or BOUNDS[actual.dtype]
    return torch.allclose(actual, expected, rtol=0, atol=bound)


def pad(prompts: list[list[int]], side: str, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return prompts as one batch, padded on a side, and its mask of real tokens."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    real = [torch.ones(len(prompt), dtype=torch.bool) for prompt in prompts]
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    return padded(rows, padding_value=fill), padded(real)


@st.composite
def chunkings(draw: Callable, T: int) -> list[int]:
    """Draw where chunks of T tokens end, the last of them at T."""
    return [*sorted(draw(st.sets(st.integers(1, T - 1)))), T] if T > 1 else [1]


@st.composite
def ragged(draw: Callable, vocab_size: int, side: str) -> tuple:
    """Draw prompts of different lengths: as lists, as a padded batch, and its mask."""
    ids = st.integers(0, vocab_size - 1)
    prompt = st.lists(ids, min_size=1, max_size=CONTEXT)
    prompts = draw(st.lists(prompt, min_size=1, max_size=4))
    return prompts, *pad(prompts, side, fill=draw(ids))


def continue_plainly(
    model: nn.Module, prompt: list[int], new_tokens: int, context_size: int
) -> list[int]:
    """Continue one prompt by the likeliest tokens, as plainly as it can be said."""
    prompt = list(prompt)
    for _ in range(new_tokens):
        logits = model(torch.tensor([prompt[-context_size:]]))[0, -1]
        prompt.append(max(range(len(logits)), key=lambda token: logits[token]))
    return prompt


class ModelContract:
    """The identities of a model; a class derived from it says how its models are made.

    Attributes:
        tiny: the config of a small model, with a context of `CONTEXT` tokens, at least
            two blocks, and no dropout; it may be tied or not.
        configs: gives a strategy of hypothesis for configs with odd sizes, with a
            context of `CONTEXT` tokens and no dropout.
        make_model: a model for a config.
        make_cache: an empty cache for a config.
        generate: `(model, idx, max_new_tokens, context_size, attention_mask=None,
            cache=None)` to the prompts and the likeliest tokens after them.
    """

    tiny: Mapping[str, Any]
    configs: Callable
    make_model: Callable
    make_cache: Callable
    generate: Callable

    def model(
        self,
        cfg: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        **changes: Any,
    ) -> Any:
        """Return a model in evaluation mode; by default it is `tiny`."""
        torch.manual_seed(seed)
        cfg = {**(self.tiny if cfg is None else cfg), **changes}
        return type(self).make_model(cfg).to(dtype).eval()

    def cache(self, model: Any) -> Any:
        """Return an empty cache for a model."""
        return type(self).make_cache(model.cfg)

    def ids(self, *shape: int, seed: int = 0) -> Tensor:
        """Return token ids for `tiny`."""
        return random_ids(*shape, vocab_size=self.tiny["vocab_size"], seed=seed)

    def any_model(self, data: st.DataObject, seed: int) -> tuple[Any, Tensor]:
        """Return a model of some size and a batch of ids for it."""
        model = self.model(data.draw(type(self).configs()), seed)
        B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, CONTEXT))
        return model, torch.randint(model.cfg["vocab_size"], (B, T))

    # --- Attention -------------------------------------------------------------------

    @some
    @given(data=st.data(), seed=seeds)
    def test_future_token_changes_no_past_logit(
        self, data: st.DataObject, seed: int
    ) -> None:
        """Known mistake: mask added as 0/1 instead of hiding."""
        model, idx = self.any_model(data, seed)
        t = data.draw(st.integers(0, idx.shape[1] - 1))
        changed = idx.clone()
        changed[:, t:] = (changed[:, t:] + 1) % model.cfg["vocab_size"]
        assert close(model(changed)[:, :t], model(idx)[:, :t])

    def test_a_token_changes_its_own_logits_and_those_of_all_later_places(self) -> None:
        """Known mistake: a mask that hides the token itself, or all of the past."""
        model, idx = self.model(), self.ids(1, CONTEXT)
        out = model(idx)
        for t in range(CONTEXT):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + 1) % model.cfg["vocab_size"]
            moved = (model(changed) - out).abs().amax(dim=-1)[0]
            assert (moved[t:] > 1e-9).all()

    def test_order_counts(self) -> None:
        """Known mistake: positions that are lost, or the same for all tokens."""
        model = self.model()
        out = model(torch.tensor([[1, 2, 3], [2, 1, 3]]))[:, -1]
        assert (out[0] - out[1]).abs().max() > 1e-6

    # --- The cache -------------------------------------------------------------------

    @some
    @given(data=st.data(), seed=seeds)
    def test_cached_equals_uncached_for_any_chunks(
        self, data: st.DataObject, seed: int
    ) -> None:
        """Known mistakes: a cached step with a 1 x 1 mask; causal mask aligned to the
        top left when queries are fewer than keys; square mask misapplied to a
        continuation; position offset that grows by the total length at each step; keys
        rotated anew.
        """
        model, idx = self.any_model(data, seed)
        cache, parts, start = self.cache(model), [], 0
        with torch.no_grad():
            for end in data.draw(chunkings(idx.shape[1])):
                parts.append(model(idx[:, start:end], cache=cache))
                assert cache.length == end
                start = end
            assert close(torch.cat(parts, dim=1), model(idx))

    def test_each_cached_step_reads_one_token(self) -> None:
        """Known mistake: a demonstration "with cache" that does not use the cache."""
        model, read = self.model(), []
        model.tok_emb.register_forward_hook(lambda _, x, out: read.append(out.shape[1]))
        cache, generate = self.cache(model), type(self).generate
        generate(model, self.ids(2, 6), 7, CONTEXT, cache=cache)
        assert read == [6, 1, 1, 1, 1, CONTEXT, CONTEXT]  # the last two past the end

    def test_a_second_prompt_equals_a_fresh_run(self) -> None:
        """Known mistakes: cache leaking between calls; position not reset."""
        model, generate = self.model(), type(self).generate
        cache = self.cache(model)
        generate(model, self.ids(2, 5, seed=1), 4 * CONTEXT, CONTEXT, cache=cache)
        cache.reset()
        again = generate(model, self.ids(3, 4, seed=2), 15, CONTEXT, cache=cache)
        fresh = self.cache(model)
        expected = generate(
            self.model(), self.ids(3, 4, seed=2), 15, CONTEXT, cache=fresh
        )
        assert torch.equal(again, expected)

    def test_cache_is_for_generating_only(self) -> None:
        model = self.model()
        with pytest.raises(ValueError, match=r"torch\.no_grad\(\)"):
            model(self.ids(1, 3), cache=self.cache(model))

    # --- Batches and padding ---------------------------------------------------------

    @some
    @given(data=st.data(), seed=seeds)
    def test_batched_equals_single(self, data: st.DataObject, seed: int) -> None:
        model, idx = self.any_model(data, seed)
        together = model(idx)
        for b in range(len(idx)):
            assert close(together[b : b + 1], model(idx[b : b + 1]))

    @sides
    @some
    @given(data=st.data(), seed=seeds)
    def test_padded_batch_equals_each_prompt_alone(
        self, side: str, data: st.DataObject, seed: int
    ) -> None:
        """Known mistakes: ragged prompts padded without a mask or with a wrong one;
        positions counted over padding; last logits taken at -1 although the row is
        padded.
        """
        model = self.model(data.draw(type(self).configs()), seed)
        prompts, idx, real = data.draw(ragged(model.cfg["vocab_size"], side))
        together = model(idx, real)
        for b, prompt in enumerate(prompts):
            alone = model(torch.tensor([prompt]))
            assert close(together[b][real[b]], alone[0])
            assert close(together[b, real[b].nonzero().max()], alone[0, -1])

    @sides
    @some
    @given(data=st.data(), seed=seeds)
    def test_padded_and_cached_equals_padded(
        self, side: str, data: st.DataObject, seed: int
    ) -> None:
        model = self.model(data.draw(type(self).configs()), seed)
        _, idx, real = data.draw(ragged(model.cfg["vocab_size"], side))
        cache, parts, start = self.cache(model), [], 0
        with torch.no_grad():
            for end in data.draw(chunkings(idx.shape[1])):
                parts.append(model(idx[:, start:end], real[:, :end], cache))
                start = end
            assert close(torch.cat(parts, dim=1)[real], model(idx, real)[real])

    @sides
    def test_what_stands_at_padding_does_not_matter(self, side: str) -> None:
        model, prompts = self.model(), [[5, 1, 7, 2], [3], [9, 9]]
        idx, real = pad(prompts, side)
        other, _ = pad(prompts, side, fill=4)
        assert close(model(idx, real)[real], model(other, real)[real])
        for kind in (torch.int64, torch.int32, torch.uint8):
            assert torch.equal(model(idx, real.to(kind)), model(idx, real))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_row_of_padding_alone_gives_finite_numbers(
        self, dtype: torch.dtype
    ) -> None:
        """Known mistake: NaN from fully masked rows, here also in the gradients."""
        model, real = self.model(dtype=dtype), torch.ones(2, 4, dtype=torch.bool)
        real[0] = False
        out = model(self.ids(2, 4), real)
        out.float().square().mean().backward()
        assert out.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    # --- Generating ------------------------------------------------------------------

    @settings(some, max_examples=12)
    @given(
        data=st.data(),
        seed=seeds,
        new_tokens=st.integers(0, 4 * CONTEXT),
        context_size=st.integers(1, CONTEXT),
        cached=st.booleans(),
    )
    def test_generating_equals_the_plain_way(
        self,
        data: st.DataObject,
        seed: int,
        new_tokens: int,
        context_size: int,
        cached: bool,
    ) -> None:
        """With a cache and without, within the context and far past it."""
        model, idx = self.any_model(data, seed)
        cache = self.cache(model) if cached else None
        generate = type(self).generate
        found = generate(model, idx, new_tokens, context_size, cache=cache)
        with torch.no_grad():
            expected = [
                continue_plainly(model, row, new_tokens, context_size)
                for row in idx.tolist()
            ]
        assert found.tolist() == expected

    @settings(some, max_examples=12)
    @given(data=st.data(), seed=seeds, new=st.integers(1, 20), cached=st.booleans())
    def test_ragged_prompts_go_on_as_each_does_alone(
        self, data: st.DataObject, seed: int, new: int, cached: bool
    ) -> None:
        """Also past the context, where the padding of the short ones leaves first."""
        model = self.model(data.draw(type(self).configs()), seed)
        prompts, idx, real = data.draw(ragged(model.cfg["vocab_size"], "left"))
        generate = type(self).generate
        cache = self.cache(model) if cached else None
        found = generate(model, idx, new, CONTEXT, real, cache)
        for row, prompt in zip(found, prompts, strict=True):
            alone = generate(model, torch.tensor([prompt]), new, CONTEXT)
            assert torch.equal(row[-alone.shape[1] :], alone[0])

    # --- Dtypes, state, compiling ----------------------------------------------------

    def test_half_precision_stays_half_precision(self) -> None:
        """Known mistake: a part left in float32, or positions gone to bfloat16."""
        model, idx = self.model(dtype=torch.float32), self.ids(2, 5)
        expected = model(idx)
        half = copy.deepcopy(model).to(torch.bfloat16)(idx)
        assert half.dtype == torch.bfloat16
        assert (half - expected).abs().max() < 0.1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(idx)
        assert (mixed - expected).abs().max() < 0.1

    def test_two_passes_agree_and_nothing_stays_between_calls(self) -> None:
        model, idx = self.model(), self.ids(2, 5)
        fresh, weights = model(idx), copy.deepcopy(model.state_dict())
        assert list(weights) == [name for name, _ in model.named_parameters()]
        with torch.no_grad():
            model(self.ids(3, 4, seed=1), cache=self.cache(model))
        model(self.ids(1, 9, seed=2), torch.zeros(1, 9, dtype=torch.bool))
        assert torch.equal(model(idx), fresh)
        assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())

    def test_model_is_traced_in_one_piece(self) -> None:
        """What torch.compile needs."""
        model, idx = self.model(), self.ids(2, 5)
        traced = torch.compile(model, backend="eager", fullgraph=True)
        assert close(traced(idx), model(idx))
        assert torch.equal(model(idx.int()), model(idx))

    # --- Tied weights ----------------------------------------------------------------

    def test_tied_weights_stay_one_tensor(self) -> None:
        """Known mistake: "tied" weights copied, not shared."""
        model, idx = self.model(tie_weights=True), self.ids(2, 5)
        expected, size = model(idx), model.tok_emb.weight.numel()
        untied = sum(p.numel() for p in self.model(tie_weights=False).parameters())
        for change in (
            lambda model: copy.deepcopy(model).half().double(),
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            self.through_file,
            self.by_way_of_meta,
        ):
            changed = change(model)
            assert changed.tok_emb.weight is changed.out_head.weight
            assert sum(p.numel() for p in changed.parameters()) == untied - size
            assert close(changed(idx), expected, bound=0.05)  # half keeps 3 digits

    def through_file(self, model: Any) -> Any:
        """Return a new model with the weights from a file."""
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        loaded = self.model(model.cfg, seed=1)
        loaded.load_state_dict(torch.load(file))
        return loaded

    def by_way_of_meta(self, model: Any) -> Any:
        """Return a copy that had no numbers in between; none is computed when made."""
        empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
        empty.load_state_dict(model.state_dict())
        return empty

    def test_an_optimizer_moves_tied_weights_once(self) -> None:
        model = self.model(tie_weights=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(self.ids(2, 5)).square().mean().backward()
        before, slope = model.tok_emb.weight.detach().clone(), model.tok_emb.weight.grad
        optimizer.step()
        assert close(model.tok_emb.weight.detach(), before - 0.5 * slope)

    def test_tied_weights_lie_in_a_file_once(self, tmp_path: Path) -> None:
        model, path = self.model(tie_weights=True), tmp_path / "model.safetensors"
        save_file(model.state_dict(), path)
        loaded = self.model(tie_weights=True, seed=1)
        loaded.load_state_dict(load_file(path))
        assert torch.equal(loaded(self.ids(2, 5)), model(self.ids(2, 5)))

    # --- Bad input -------------------------------------------------------------------

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda ids: {"idx": ids(5)}, r"shape \(5,\): give \(batch, tokens\)"),
            (lambda ids: {"idx": ids(1, 0)}, "no token at all"),
            (lambda ids: {"idx": ids(1, 3) - 99}, "knows the ids 0 to"),
            (lambda ids: {"idx": ids(1, 3) + 99}, "knows the ids 0 to"),
            (lambda ids: {"idx": ids(1, 9)}, r"11 tokens \(2 of them in the cache\)"),
            (
                lambda ids: {"attention_mask": torch.ones(1, 3).bool()},
                r"must be \(1, 5\).* 2 cached",
            ),
            (lambda ids: {"attention_mask": torch.ones(1, 5)}, "give bool, or integer"),
            (
                lambda ids: {"attention_mask": ids(1, 5, seed=5)},
                "does not hold token ids",
            ),
        ],
    )
    def test_wrong_arguments_are_refused_and_the_cache_stays(
        self, change: Callable, message: str
    ) -> None:
        """Known mistakes: bounds checked on the chunk alone; targets passed as mask."""
        model = self.model()
        cache = self.cache(model)
        model(self.ids(1, 2), cache=cache)
        arguments = {"idx": self.ids(1, 3), "cache": cache, **change(self.ids)}
        with pytest.raises(ValueError, match=message):
            model(**arguments)
        assert cache.length == 2
