"""Loading weights with little memory (chapter 5, bonus).

Seven ways to a model that has the weights of a file. They end in the same model, number
for number, and differ in what they hold in memory on the way there:

=====================  ==========================================  ===================
way                    what is held at its peak, on the CPU        file
=====================  ==========================================  ===================
`load_naive`           a model, and the whole file beside it       state dict, `.pth`
`load_then_move`       the same; the device holds one model        state dict, `.pth`
`load_one_by_one`      a model and one tensor                      safetensors
`load_meta`            the numbers of the file, which become the   state dict, `.pth`
                       model's
`load_mapped`          pages of the file, once they are used       state dict, `.pth`
`load_by_shards`       the model so far and one shard              safetensors, several
`load_by_tensor`       the model so far and one tensor             safetensors
=====================  ==========================================  ===================

Each takes `make`, a function that makes the model, and makes the model itself: a file
that is damaged, incomplete or another model's ends in an error, and nobody is left with
half a model. The tensors in the file have the names of the model's own `state_dict`,
and the model keeps its dtype, whatever the file holds.

The last four use `parameters_on_meta`: a model whose parameters have no memory yet and
whose buffers are real, since buffers that are not saved are in no file. This is what
`init_empty_weights` of the library accelerate does by default. `fill` gives such a
model its numbers; tied weights stay tied. A tensor that a model computes from its
parameters when it is made has no numbers then: as a buffer it is refused; as a plain
attribute it is not noticed, and fails when it is used.

They differ on files that a model with tied weights or hooks of its own did not write.
Of a tied weight, `load_naive` and `load_then_move` want all names, and if the file has
different numbers under them, the last ones win, as with `load_state_dict`; the others
take one name as well, and refuse different numbers. Names that a hook of the model
passes over, such as GPT's masks in old files, are passed over where a state dict is
read, and refused where safetensors are.

Left out: quantised files (`gguf_weights`), weights that stay on disk while the model
runs, models spread over several devices, state dicts with other things than tensors.

>>> from tempfile import TemporaryDirectory
>>> def make():
...     return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
>>> model = make()
>>> with TemporaryDirectory() as folder:
...     torch.save(model.state_dict(), f"{folder}/weights.pth")
...     loaded = load_meta(make, f"{folder}/weights.pth")
>>> torch.equal(loaded[0].weight, model[0].weight)
True

A model on its way there has shapes, and no numbers:

>>> with parameters_on_meta():
...     empty = make()
>>> empty[0].weight.device, tuple(empty[0].weight.shape)
(device(type='meta'), (4, 3))
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from safetensors_files import (
    SafetensorsFiles,
    Undrawn,
    dtype_problem,
    name_problem,
    shape_problem,
)
from state_errors import (
    check_equal,
    check_state,
    drop_copies,
    naming_file,
    reading,
)

Make = Callable[[], nn.Module]
Place = str | Path
Device = str | torch.device


# --- Twice the weights ---------------------------------------------------------------


def load_naive(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """Make the model, read the whole file, copy.

    Args:
        make: makes the model, without arguments, on the CPU.
        path: a state dict, as `torch.save(model.state_dict(), path)` writes it.
        device: where the model shall be.

    Returns:
        The model, with the dtype that `make` gives it.

    Raises:
        ValueError: the file cannot be read without running code, does not hold tensors
            by name, or holds the weights of another model; the message names it.
        OSError: there is no such file.
    """
    model = make().to(device)
    state = read_state(path, map_location=device)
    with naming_file(path):
        model.load_state_dict(state)
    return model


def load_then_move(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """The same on the CPU, and then move the model: one set of weights on the device.

    Arguments, result and errors are those of `load_naive`.
    """
    model = make()
    state = read_state(path)
    with naming_file(path):
        model.load_state_dict(state)
    return model.to(device)


def read_state(path: Place, **options: Any) -> dict[str, Tensor]:
    """A state dict from a file, without running code that may be in it.

    Args:
        path: a file that `torch.save` wrote.
        options: more for `torch.load`: `map_location`, by default the CPU, or `mmap`.

    Raises:
        ValueError: it is damaged, would run code, or holds something else than tensors
            by name; the message names it.
        FileNotFoundError, IsADirectoryError, PermissionError: it cannot be opened.
        MemoryError, torch.OutOfMemoryError, RuntimeError: memory is too short for it.
    """
    with reading(path):
        state = torch.load(
            path, **{"map_location": "cpu", **options}, weights_only=True
        )
    check_state(path, state)
    return state


# --- One tensor at a time ------------------------------------------------------------


def load_one_by_one(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """Make the model, then read and copy one tensor after another.

    Args:
        make: makes the model, without arguments, on the CPU.
        path: a safetensors file, or a folder with several and their index.
        device: where the model shall be.

    Returns:
        The model, with the dtype that `make` gives it.

    Raises:
        ValueError: a file is missing, damaged or of another kind, or its tensors are
            not those of the model; the message names them.
    """
    model = make().to(device)
    tensors = SafetensorsFiles(path)
    check_fit(model, tensors)
    places = model.state_dict()  # the memory of the model itself, by name
    for name in tensors:
        places[name].copy_(tensors[name])
    return model


def check_fit(model: nn.Module, tensors: SafetensorsFiles) -> None:
    """Raise `ValueError` unless files hold just the tensors of a model.

    No tensor is read for it, except a tied weight that the files hold under two names:
    both must be equal, and only the first is left in `tensors`.
    """
    outline, groups = tensors.outline, tied_names(model)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for group in groups:  # of which files may hold one or all
        if any(name in outline for name in group):
            shapes = {n: s for n, s in shapes.items() if n not in group or n in outline}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    problem = (
        name_problem(outline, shapes)
        or shape_problem(outline, shapes)
        or dtype_problem({n: about for n, about in outline.items() if n in parameters})
    )
    if problem:
        raise ValueError(f"{tensors.path}: {problem}")
    drop_copies(tensors, groups)


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has more than one."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


# --- A model without numbers ---------------------------------------------------------


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters on meta, without memory; buffers are real.

    Nothing is drawn for the parameters, either. It changes `nn.Module` while it is
    open, for all threads: make the model inside, and nothing else.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None and not parameter.is_meta:  # one is, if it is tied
            empty = parameter.detach().to("meta")
            parameter = nn.Parameter(empty, parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        with Undrawn():
            yield
    finally:
        nn.Module.register_parameter = register


def fill(model: nn.Module, state: dict[str, Tensor], device: Device) -> nn.Module:
    """Make the tensors of a state dict the parameters of a model on meta.

    Args:
        model: as made inside `parameters_on_meta`. It keeps its dtypes.
        state: the tensors by name; emptied, so that a tensor which has to be converted
            or moved is released before the next one.
        device: where the model shall be.

    Returns:
        The same model, no parameter or buffer of it on meta, tied parameters still
        tied. A plain attribute that was computed from parameters stays on meta.

    Raises:
        RuntimeError: names or shapes differ, as `load_state_dict` says.
        ValueError: a tensor stayed on meta, a buffer that was computed from parameters;
            or a tied parameter has different numbers under its names.
    """
    places, weights = model.state_dict(), {}
    for name in list(state):
        dtype = places[name].dtype if name in places else None
        weights[name] = state.pop(name).to(device, dtype)
    for group in tied_names(model):
        there = [weights[name] for name in group if name in weights]
        check_equal(group, there)
        if there:  # one object under all its names
            weights |= dict.fromkeys(group, nn.Parameter(there[0]))
    model.load_state_dict(weights, assign=True)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise ValueError(f"{left[0]} is on meta: it was computed from parameters.")
    return model.to(device)  # the buffers that are in no file


def load_meta(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """Make the model on meta, and let it take over the tensors of the file.

    Arguments, result and errors are those of `load_naive`; what `fill` refuses is a
    ValueError that names the file.
    """
    with parameters_on_meta():
        model = make()
    state = read_state(path, map_location=device)
    with naming_file(path):
        return fill(model, state, device)


def load_mapped(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """The same, with the file mapped into memory: a page is read when it is used.

    On the CPU the weights *are* the file from then on: it must not be overwritten or
    cut while the model lives. A weight that is changed gets a page of its own; the file
    stays as it is. Arguments, result and errors are those of `load_meta`.
    """
    with parameters_on_meta():
        model = make()
    state = read_state(path, mmap=True)
    with naming_file(path):
        return fill(model, state, device)


def load_by_shards(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """Make the model on meta, and take over the tensors of one file after another.

    Args:
        make: makes the model, without arguments, on the CPU.
        path: a folder with several safetensors files and their index. One file alone
            counts as one shard, and is held whole.
        device: where the model shall be.

    Returns:
        The model, with the dtype that `make` gives it.

    Raises:
        ValueError: as `load_one_by_one`, and what `fill` refuses.
    """
    with parameters_on_meta():
        model = make()
    tensors = SafetensorsFiles(path)
    check_fit(model, tensors)
    places, weights = model.state_dict(), {}
    for file in tensors.files:
        for name, tensor in load_file(file).items():  # a map, as long as it is used
            weights[name] = tensor.to(device, places[name].dtype, copy=True)
    with naming_file(path):
        return fill(model, weights, device)


def load_by_tensor(make: Make, path: Place, device: Device = "cpu") -> nn.Module:
    """Make the model on meta, and take over one tensor of the file after another.

    Arguments, result and errors are those of `load_one_by_one`, and what `fill`
    refuses.
    """
    with parameters_on_meta():
        model = make()
    tensors = SafetensorsFiles(path)
    check_fit(model, tensors)
    places, weights = model.state_dict(), {}
    for name in tensors:
        weights[name] = tensors[name].to(device, places[name].dtype, copy=True)
    with naming_file(path):
        return fill(model, weights, device)


WAYS: Mapping[str, Callable[..., nn.Module]] = {
    "naive": load_naive,
    "then move": load_then_move,
    "one by one": load_one_by_one,
    "meta": load_meta,
    "mapped": load_mapped,
    "by shards": load_by_shards,
    "by tensor": load_by_tensor,
}


# --- What is measured ----------------------------------------------------------------


def load_and_use(
    way: str,
    make: Make,
    path: Place,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    train: bool = False,
) -> Generator[str, None, str]:
    """Load a language model and use it; yields a name after each step.

    For `process_memory.measure`. The steps: "loaded"; "used", after a text of 8 tokens;
    and if it is to be trained, "last block trained", by a step of gradient descent, and
    "all changed", by a step of weight decay, which needs no gradients.

    Args:
        way: a key of `WAYS`.
        make, path, device: the way's arguments.
        dtype: what the model is turned into when it is made.
        train: whether to train.

    Returns:
        The SHA-256 of the 8 tokens' logits.
    """
    model = WAYS[way](lambda: make().to(dtype), path, device).eval()
    yield "loaded"
    idx = torch.arange(8, device=device)[None]  # (1, 8)
    with torch.no_grad():
        logits = model(idx)  # (1, 8, V)
    yield "used"
    if train:
        _train(model, model.get_submodule("trf_blocks")[-1], idx)
        yield "last block trained"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 - 1e-4)
        yield "all changed"
    return hashlib.sha256(logits.cpu().float().numpy().tobytes()).hexdigest()


def _train(model, part, idx):
    """A step of gradient descent for the parameters of a part of the model."""
    model.requires_grad_(False)
    part.requires_grad_(True)
    loss = nn.functional.cross_entropy(model(idx[:, :-1])[0], idx[0, 1:])
    loss.backward()
    torch.optim.SGD(part.parameters(), lr=1e-3).step()
    part.zero_grad()
