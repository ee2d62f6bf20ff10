"""Six ways to one model: the same numbers, nothing untied, nothing left without any."""

import copy
import functools
import gc
import itertools
import os
import sys

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import low_memory
from gpt import GPT_CONFIG_124M, GPTModel
from llama import SMOLLM2_135M, LlamaModel
from low_memory import WAYS, fill, load_and_use, parameters_on_meta
from process_memory import (
    measure,
    measure_here,
    memory_now,
    peak_memory,
    reset_peak,
)

GPT = {**GPT_CONFIG_124M, "vocab_size": 60, "context_length": 12, "emb_dim": 12}
GPT |= {"n_heads": 3, "n_layers": 2}
LLAMA = {**SMOLLM2_135M, "vocab_size": 60, "emb_dim": 20, "n_heads": 4}
LLAMA |= {"n_kv_groups": 2, "head_dim": 6, "n_layers": 3, "hidden_dim": 28}
IDX = torch.tensor([[3, 1, 4, 1, 5, 9]])


class Rotary(nn.Module):
    """A table that is in no file, a buffer that is in it, and the usual tied head."""

    def __init__(self):
        super().__init__()
        self.tok_emb = nn.Embedding(60, 8)
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        angles = torch.outer(torch.arange(12.0), 0.5 ** torch.arange(8.0))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("mean", torch.zeros(8))
        self.register_parameter("nothing", None)
        self.out_head = nn.Linear(8, 60, bias=False)
        self.out_head.weight = self.tok_emb.weight

    def forward(self, idx):
        x = (self.tok_emb(idx) - self.mean) * self.frozen
        return self.out_head(x * self.cos[: idx.shape[1]])


MODELS = {
    "GPT": functools.partial(GPTModel, GPT),
    "GPT, tied": functools.partial(GPTModel, {**GPT, "tie_weights": True}),
    "Llama": functools.partial(LlamaModel, {**LLAMA, "tie_weights": False}),
    "Llama, tied": functools.partial(LlamaModel, LLAMA),
    "rotary": Rotary,
}


class Saved:
    """A model with numbers of its own, and its files."""

    def __init__(self, make, folder, dtype=torch.float32):
        torch.manual_seed(5)
        self.make, self.model = make, make().eval()
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.normal_()
        self.state = copy.deepcopy(self.model).to(dtype).state_dict()
        torch.save(self.state, folder / "weights.pth")
        shards = folder / "shards"
        shards.mkdir()
        size = sum(tensor.nbytes for tensor in self.state.values())
        save_torch_state_dict(self.state, shards, max_shard_size=size // 4)
        assert len(list(shards.glob("*.safetensors"))) > 1
        distinct = {
            name: tensor
            for file in shards.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }  # names that share memory are saved once
        save_file(distinct, folder / "weights.safetensors")
        self.folder = folder

    def place(self, way):
        places = {"one by one": "weights.safetensors", "by shards": "shards"}
        return self.folder / places.get(way, "weights.pth")

    def load(self, way, make=None):
        return WAYS[way](make or self.make, self.place(way))


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    return Saved(MODELS[request.param], tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Saved(MODELS["GPT, tied"], tmp_path_factory.mktemp("tiny"))


def tensors_of(model):
    """All parameters under all their names, all buffers."""
    named = model.named_parameters(remove_duplicate=False)
    return dict(itertools.chain(named, model.named_buffers()))


# --- The same model -------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_way_ends_in_the_same_model(saved, way):
    loaded, wanted = saved.load(way).eval(), tensors_of(saved.model)
    found = tensors_of(loaded)
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].device.type == "cpu", name
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name
        assert found[name].requires_grad == tensor.requires_grad, name
        assert isinstance(found[name], nn.Parameter) == isinstance(tensor, nn.Parameter)
    with torch.no_grad():
        assert torch.equal(loaded(IDX), saved.model(IDX))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_tied_is_one_tensor_afterwards(saved, way):
    loaded = saved.load(way)
    groups = low_memory.tied_names(saved.model)
    assert low_memory.tied_names(loaded) == groups
    for one, *others in groups:
        for other in others:
            assert loaded.get_parameter(one) is loaded.get_parameter(other)
    tied = saved.model.out_head.weight is saved.model.tok_emb.weight
    assert (loaded.out_head.weight is loaded.tok_emb.weight) == tied
    with torch.no_grad():
        loaded.tok_emb.weight.add_(1.0)
    same = torch.equal(loaded.out_head.weight, loaded.tok_emb.weight)
    assert same == tied
    count = sum(p.numel() for p in loaded.parameters())
    assert count == sum(p.numel() for p in saved.model.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wide_file", [True, False])
def test_the_model_keeps_its_dtype(tmp_path, way, wide_file):
    """Known mistake: with `assign` the dtype of the file would win."""
    file, model = torch.float32, torch.bfloat16
    if not wide_file:
        file, model = model, file
    saved = Saved(MODELS["rotary"], tmp_path, file)
    loaded = saved.load(way, lambda: Rotary().to(model))
    for name, tensor in saved.state.items():
        assert loaded.state_dict()[name].dtype == model
        assert torch.equal(loaded.state_dict()[name], tensor.to(model))
    assert loaded.cos.dtype == model


@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_model_learns_and_leaves_its_file_alone(tiny, way):
    place = tiny.place(way)
    files = sorted(place.glob("*")) if place.is_dir() else [place]
    before = [file.read_bytes() for file in files]
    loaded = tiny.load(way)
    old = {name: p.detach().clone() for name, p in loaded.named_parameters()}
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(IDX).square().mean().backward()
    optimizer.step()
    changed = [n for n, p in loaded.named_parameters() if not torch.equal(p, old[n])]
    assert len(changed) > len(old) / 2
    assert [file.read_bytes() for file in files] == before


def test_a_mapped_file_may_be_replaced_but_lives_on(tiny, tmp_path):
    """A new file under the old name is another file; the old one stays mapped."""
    path = tmp_path / "weights.pth"
    path.write_bytes(tiny.place("mapped").read_bytes())
    loaded = low_memory.load_mapped(tiny.make, path)
    new = tmp_path / "new.pth"
    torch.save({name: torch.zeros_like(t) for name, t in tiny.state.items()}, new)
    if sys.platform == "win32":
        return  # there, a mapped file cannot be replaced at all
    new.replace(path)
    for name, tensor in tiny.state.items():
        assert torch.equal(loaded.state_dict()[name], tensor)


# --- Models without numbers -----------------------------------------------------------


def test_parameters_have_no_numbers_and_buffers_do():
    with parameters_on_meta():
        model = Rotary()
    assert {name for name, p in model.named_parameters() if p.is_meta} == {
        "tok_emb.weight",
        "frozen",
    }
    assert not model.frozen.requires_grad
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.equal(model.cos, Rotary().cos)
    assert model.nothing is None


def test_nothing_is_drawn_and_all_is_as_before_afterwards():
    before, state = nn.Module.register_parameter, torch.random.get_rng_state()
    with parameters_on_meta():
        GPTModel(GPT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert nn.Module.register_parameter is before
    with pytest.raises(TypeError), parameters_on_meta():
        nn.Linear("two", 2)
    assert nn.Module.register_parameter is before
    torch.manual_seed(1)
    first = nn.Linear(3, 2).weight
    torch.manual_seed(1)
    assert torch.equal(nn.Linear(3, 2).weight, first)
    assert not first.is_meta


def test_masks_are_as_they_are_made():
    with parameters_on_meta():
        model = GPTModel(GPT)
    wanted = dict(GPTModel(GPT).named_buffers())
    assert wanted
    for name, mask in model.named_buffers():
        assert torch.equal(mask, wanted[name])


def test_what_plain_pytorch_does_with_a_table_that_is_in_no_file():
    """The two mistakes that the lesson shows, in PyTorch's own words."""
    state = Rotary().state_dict()
    with torch.device("meta"):
        model = Rotary()
    model.load_state_dict(state, assign=True)
    assert model.cos.is_meta
    assert not model.tok_emb.weight.is_meta
    with torch.device("meta"):
        model = Rotary()
    model.to_empty(device="cpu")
    with torch.utils._python_dispatch._disable_current_modes():
        model.cos.fill_(9)  # whatever lay there
    model.load_state_dict(state)
    assert (model.cos == 9).all()


def test_what_plain_pytorch_does_with_two_names_of_one_parameter():
    """If this fails, PyTorch has changed, and the lesson's third trap is gone."""
    model = Rotary()
    model.load_state_dict(Rotary().state_dict(), assign=True)
    assert model.out_head.weight is not model.tok_emb.weight


def test_a_buffer_made_from_a_parameter_is_refused():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            norm = self.weight.detach().norm()
            self.register_buffer("norm", norm, persistent=False)

    with parameters_on_meta():
        model = Normed()
    with pytest.raises(ValueError, match="norm is on meta"):
        fill(model, {"weight": torch.ones(3)}, "cpu")


def test_a_state_is_released_while_it_is_converted(tiny):
    state = dict(tiny.state)
    with parameters_on_meta():
        model = tiny.make().to(torch.bfloat16)
    fill(model, state, "cpu")
    assert state == {}


# --- Files that do not fit ------------------------------------------------------------


def damage(saved, folder, kind):
    """A copy of the files with something wrong in them."""
    state = dict(saved.state)
    name = "trf_blocks.1.norm2.scale"
    if kind == "a tensor is missing":
        del state[name]
    elif kind == "a tensor too many":
        state["stranger"] = torch.ones(2)
    elif kind == "another shape":
        state[name] = torch.ones(3, 4)
    elif kind == "a shape that would be broadcast":
        state[name] = torch.ones(1)
    state = {name: tensor.clone() for name, tensor in state.items()}
    torch.save(state, folder / "weights.pth")
    save_file(state, folder / "weights.safetensors")
    shards = folder / "shards"
    shards.mkdir()
    save_torch_state_dict(state, shards, max_shard_size=6000)
    places = [*folder.glob("weights.*"), sorted(shards.glob("*.safetensors"))[1]]
    for file in places:
        content = file.read_bytes()
        if kind == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif kind == "empty":
            file.write_bytes(b"")
        elif kind == "not there":
            file.unlink()


KINDS = (
    "a tensor is missing",
    "a tensor too many",
    "another shape",
    "a shape that would be broadcast",
    "cut",
    "empty",
    "not there",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_ends_in_an_error_and_no_model(tiny, tmp_path, kind):
    register = nn.Module.register_parameter
    damage(tiny, tmp_path, kind)
    for way, load in WAYS.items():
        place = tmp_path / tiny.place(way).name
        of_torch = kind == "not there" and way not in ("one by one", "by shards")
        wanted = FileNotFoundError if of_torch else (ValueError, RuntimeError)
        with pytest.raises(wanted) as said:
            load(tiny.make, place)
        assert str(said.value), way
        if kind in KINDS[:4]:
            assert "stranger" in str(said.value) or "norm2" in str(said.value), way
        elif way != "by shards":
            assert str(place) in str(said.value)
    assert nn.Module.register_parameter is register


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory."),
        PermissionError(13, "Permission denied"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_lack_of_memory_is_not_blamed_on_the_file(monkeypatch, problem):
    def load(*_, **__):
        raise problem

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(problem)) as said:
        low_memory.read_state("weights.pth")
    assert said.value is problem


class MakesAFolder:
    """What a file may hide: reading it makes a folder, unless code is refused."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["naive", "then move", "meta", "mapped"])
def test_code_in_a_state_dict_is_refused_and_not_run(tiny, tmp_path, way):
    trace = tmp_path / "trace"
    torch.save({**tiny.state, "more": MakesAFolder(trace)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not without running code"):
        WAYS[way](tiny.make, tmp_path / "weights.pth")
    assert not trace.exists()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    way=st.sampled_from(list(WAYS)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4
    ),
    kept=st.floats(0.3, 1),
)
def test_damaged_files_give_an_error_or_a_whole_model(
    tiny, tmp_path, way, changes, kept
):
    """Bytes of the numbers themselves may be others: only a checksum sees that."""
    source = tiny.place(way)
    target = tmp_path / source.name
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    if source.is_dir():
        target.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        content = bytearray(file.read_bytes())
        if number == 0:
            for at, value in changes:
                content[int(at * len(content))] = value
            del content[round(kept * len(content)) :]
        (target / file.name if source.is_dir() else target).write_bytes(content)
    try:
        loaded = WAYS[way](tiny.make, target)
    except (ValueError, RuntimeError):
        return
    wanted = tensors_of(tiny.model)
    for name, tensor in tensors_of(loaded).items():
        assert not tensor.is_meta
        assert tensor.shape == wanted[name].shape
        assert tensor.dtype == wanted[name].dtype


# --- Memory ---------------------------------------------------------------------------

WIDE = {**LLAMA, "vocab_size": 20_000, "emb_dim": 400, "n_layers": 10}
WIDE |= {"hidden_dim": 1600}  # 133 MB, the embedding 32 MB of them


def each_way(folder, cfg):
    """The most that each way holds above the start, its first use included.

    One process for all, to save time: what one way gave back may still be held when the
    next begins, so they come in the order of their peaks.
    """
    peaks, start = {}, memory_now().total
    for way in ("mapped", "meta", "by shards", "one by one", "naive"):
        places = {"one by one": "weights.safetensors", "by shards": "shards"}
        place = folder / places.get(way, "weights.pth")
        gc.collect()
        reset_peak()
        model = WAYS[way](functools.partial(LlamaModel, cfg), place)
        with torch.no_grad():
            model(IDX)
        peaks[way] = peak_memory() - start
        del model
        yield way
    return peaks, "sympy" in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_peaks_are_those_of_the_lesson(tmp_path):
    """On a model a quarter as large as the lesson's."""
    for name, cfg in (("tiny", LLAMA), ("wide", WIDE)):
        with parameters_on_meta():
            shapes = {n: t.shape for n, t in LlamaModel(cfg).state_dict().items()}
        state = {name: torch.zeros(shape) for name, shape in shapes.items()}
        size = sum(tensor.nbytes for tensor in state.values())
        shards = tmp_path / name / "shards"
        shards.mkdir(parents=True)
        torch.save(state, shards.with_name("weights.pth"))
        save_file(state, shards.with_name("weights.safetensors"))
        save_torch_state_dict(state, shards, max_shard_size=size // 4)
    rehearsal = (tmp_path / "tiny", LLAMA)
    taken = measure(each_way, tmp_path / "wide", WIDE, rehearsal=rehearsal)
    peaks, compiler = taken.result
    over = {way: peak / size for way, peak in peaks.items()}
    assert not compiler  # which drawing on the meta device would import: 80 MB
    assert max(over["meta"], over["mapped"]) < 1.1
    assert 1.8 < over["naive"] < 2.3
    assert 1.1 < over["one by one"] < 1.5
    assert 1.05 < over["by shards"] < 1.45


def test_steps_of_use_and_training(tiny):
    found = [
        measure_here(load_and_use, way, tiny.make, tiny.place(way), "cpu", *options)
        for way in WAYS
        for options in ((), (torch.float32, True))
    ]
    assert len({taken.result for taken in found}) == 1
    assert list(found[0].held) == ["loaded", "used"]
    assert list(found[1].held)[2:] == ["last block trained", "all changed"]
