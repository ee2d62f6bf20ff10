"""Files opened by hand: as the libraries read them."""

import io
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from gguf_gpt2 import GPT2inGGUF
from weight_files import (
    DTYPES,
    kind_of_file,
    names_a_pickle_imports,
    read_safetensors_header,
    read_safetensors_tensor,
)

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(
    shapes=st.dictionaries(st.text(min_size=1, max_size=8), SHAPES, max_size=5),
    dtype=st.sampled_from(list(DTYPES.values())),
)
@settings(max_examples=60, deadline=None)
def test_a_file_is_read_as_the_library_reads_it(tmp_path_factory, shapes, dtype):
    file = tmp_path_factory.getbasetemp() / "any"
    tensors = {name: (9 * torch.rand(s)).to(dtype) for name, s in shapes.items()}
    tensors.pop("__metadata__", None)
    save_file(tensors, file, {"format": "pt"})
    assert kind_of_file(file) == "safetensors"
    header = read_safetensors_header(file)
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header.keys() == tensors.keys()
    with safe_open(file, framework="pt") as content:
        for name in header:
            ours = read_safetensors_tensor(file, name)
            assert torch.equal(ours, content.get_tensor(name))
            assert (ours.dtype, ours.shape) == (dtype, tensors[name].shape)


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (save({"a": torch.ones(2)}), "safetensors"),
        (save({}), "safetensors"),
        (saved({}), "PyTorch"),
        (saved({}, _use_new_zipfile_serialization=False), "pickle"),
        (pickle.dumps(3), "pickle"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b'\n  {"weight_map": {}}', "JSON"),
        (b'{"abcd":{"a": 1}}', "JSON"),  # a brace where a header would begin
        (saved({})[:300], "a damaged zip archive"),
        (b"<!doctype HTML>", "a web page"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html>", "a web page"),
        (
            b"<?xml version='1.0'?><Error>AccessDenied",
            "a page in XML, such as servers send with an error",
        ),
        (b"Entry not found", "the hub's answer to a wrong name"),
        (b'\xef\xbb\xbf{"a": 1}', "JSON"),
        (b"[1, 2]", "JSON"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (
            bytes(7) + b"\xff" + save({"a": torch.ones(2)})[8:],
            "a safetensors file whose first 8 bytes are damaged",
        ),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"", "an empty file"),
        (b"\x80", "a file of an unknown kind"),
        (b"text", "a file of an unknown kind"),
    ],
)
def test_the_first_bytes_say_what_it_is(tmp_path, content, kind):
    for name in ("model.safetensors", "model.bin", "x"):
        (tmp_path / name).write_bytes(content)
        assert kind_of_file(tmp_path / name) == kind


class Called:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_s_imports_are_found_and_not_made(protocol, capsys):
    data = pickle.dumps([Called(), {"a": Called()}, "text"], protocol)
    found = names_a_pickle_imports(data)
    assert [name.rpartition(".")[2] for name in found] == ["print"]
    assert found[0] in ("builtins.print", "__builtin__.print")
    assert capsys.readouterr().out == ""
    assert names_a_pickle_imports(pickle.dumps([1, "two"], protocol)) == []


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_text_that_is_repeated_by_its_number_is_followed(protocol):
    """Known mistake: "print.len", as the second "builtins" is written as a number."""
    data = pickle.dumps([print, "text", len, "text", OrderedDict(a=1), len], protocol)
    builtins = "__builtin__" if protocol < 3 else "builtins"
    expected = [f"{builtins}.print", f"{builtins}.len", "collections.OrderedDict"]
    assert names_a_pickle_imports(data) == expected


def test_the_oldest_way_to_call_is_seen(capsys):
    """INST, which Python itself has not written for decades and still follows."""
    data = b"(S'called'\ni__builtin__\nprint\n."
    assert names_a_pickle_imports(data) == ["__builtin__.print"]
    assert capsys.readouterr().out == ""
    pickle.loads(data)
    assert capsys.readouterr().out == "called\n"


def test_a_hidden_name_is_not_seen():
    """Why the list is no guard: a text is written and thrown away again."""
    hidden = b"\x80\x04\x8c\x08builtins\x8c\x05print\x8c\x03len0\x93."
    assert names_a_pickle_imports(hidden) == ["print.len"]
    assert pickle.loads(hidden) is print


def test_what_is_no_pickle_is_told():
    with pytest.raises(ValueError, match="pickle|opcode"):
        names_a_pickle_imports(b"\x80\x04no pickle")


def test_an_unfinished_gguf_is_told(tmp_path):
    (tmp_path / "a").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="ends before its header does"):
        GPT2inGGUF(tmp_path / "a")
