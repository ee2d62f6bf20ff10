"""What is in a file of weights, read by hand (chapter 5, bonus: weights from anywhere).

A file of weights holds names, shapes, dtypes and numbers. `weight-loading.ipynb` opens
the common kinds of such files with these functions:

* `kind_of_file`: what a file is, by its first bytes and not by its name;
* `read_safetensors_header` and `read_safetensors_tensor`: the safetensors format;
* `names_a_pickle_imports`: what a pickle says it would import, with nothing imported.

Sources: the safetensors format, https://github.com/huggingface/safetensors
(Apache-2.0); the opcodes of pickles, Python's module `pickletools`. Left out: whatever
may be wrong with a file, which `safetensors_files`, `state_dicts` and `gguf_files`
look after.

>>> from tempfile import TemporaryDirectory
>>> from safetensors.torch import save_file
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "any-name")
...     save_file({"bias": torch.tensor([1.0, 2.0, 3.0])}, path)
...     kind_of_file(path)
...     read_safetensors_header(path)
...     read_safetensors_tensor(path, "bias")
'safetensors'
{'bias': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12]}}
tensor([1., 2., 3.])

A pickle is a list of instructions, and they can be read without being followed:

>>> import pickle
>>> names_a_pickle_imports(pickle.dumps(print))
['builtins.print']
"""

import json
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

# How files begin that people take for weights, or get in place of weights.
SIGNS = {
    b"GGUF": "GGUF",
    b"version https://git-lfs": "git's pointer to a large file",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "a page in XML, such as servers send with an error",
    b"entry not found": "the hub's answer to a wrong name",
    b"\x93numpy": "an array of NumPy",
    b"\x89hdf": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
LONGEST_HEADER = 100_000_000  # bytes; the format allows no more
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def kind_of_file(path: str | Path) -> str:
    """What a file is, by its first bytes.

    Args:
        path: of a file.

    Returns:
        "safetensors", "GGUF", "PyTorch" (written by `torch.save`), "pickle", "JSON", or
        words for what is none of these, such as "a web page".

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= LONGEST_HEADER:
        return "safetensors"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")  # after a byte order mark
    for sign, kind in SIGNS.items():
        if text.lower().startswith(sign.lower()):
            return kind
    if start[:2] == b"PK":  # a zip archive: torch.save writes one
        try:
            with zipfile.ZipFile(path) as archive:
                parts = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return "a damaged zip archive"
        torch_wrote_it = any(part.endswith("data.pkl") for part in parts)
        return "PyTorch" if torch_wrote_it else "a zip archive"
    if start[0] == 0x80 and 2 <= int.from_bytes(start[1:2]) <= 5:  # since 2003
        return "pickle"
    if text[:1] in (b"{", b"["):
        return "JSON"
    if start[8:10] == b'{"':
        return "a safetensors file whose first 8 bytes are damaged"
    return "a file of an unknown kind"


def read_safetensors_header(path: str | Path) -> dict[str, Any]:
    """What a safetensors file says of itself: {name: dtype, shape, place}.

    Args:
        path: of the file. Its first 8 bytes are the length of the header, a number
            that is stored with the lowest byte first; the header, JSON, comes next.

    Returns:
        A dictionary from names to {"dtype", "shape", "data_offsets": [first byte, byte
        after the last], counted from the end of the header}. The entry "__metadata__",
        if there is one, holds remarks.
    """
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))


def read_safetensors_tensor(path: str | Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file; no other is read.

    Args:
        path: of the file.
        name: of the tensor.

    Returns:
        A new tensor, of the shape and dtype in the file.

    Raises:
        KeyError: there is no tensor of this name, or its dtype is not in `DTYPES`.
    """
    about = read_safetensors_header(path)[name]
    shape, dtype = about["shape"], DTYPES[about["dtype"]]
    first, end = about["data_offsets"]
    if first == end:  # no numbers, of which frombuffer makes no tensor
        return torch.empty(shape, dtype=dtype)
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length + first)
        raw = bytearray(file.read(end - first))
    return torch.frombuffer(raw, dtype=dtype).view(shape)


def names_a_pickle_imports(data: bytes | IO[bytes]) -> list[str]:
    """The functions and classes that a pickle says it imports, as "module.name".

    Of a pickle that Python or PyTorch wrote the list is right. It is no guard: who
    means harm can take the two texts of a name from where it is not looked for, for
    example with others written behind them and thrown away again.

    Args:
        data: a pickle, its bytes or an open file. Its instructions are read one after
            the other and none is followed.

    Returns:
        The names in their order, each once.

    Raises:
        ValueError: the bytes are no pickle.
    """
    names, texts, kept = [], [""], {}
    for instruction, argument, _ in pickletools.genops(data):
        step = instruction.name
        if step in ("GLOBAL", "INST"):  # "module name" in one text
            names.append(argument.replace(" ", "."))  # pyright: ignore
        elif step == "STACK_GLOBAL":  # the two texts before it
            names.append(".".join(texts[-2:]))
        elif step == "MEMOIZE" or step.endswith("PUT"):  # keep under a number
            kept[len(kept) if argument is None else argument] = texts[-1]
        elif step.endswith("GET"):  # repeat what has this number
            texts.append(kept.get(argument, ""))
        elif isinstance(argument, str):
            texts.append(argument)
    return list(dict.fromkeys(names))
