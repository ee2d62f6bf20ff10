"""GGUF files taken apart: as the reference reads them, every defect named."""

import struct
import time

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as ValueKind

from course.assets import fetch
from gguf_files import read_gguf


def write(path, metadata, tensors):
    """Write a GGUF file with the reference's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind, items) in metadata.items():
        writer.add_key_value(key, value, kind, items)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path


def assert_reads_like_the_reference(path):
    """Metadata and the table of tensors, compared with `gguf.GGUFReader`."""
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        assert ours.metadata[key] == theirs.fields[key].contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.format == tensor.tensor_type.name
        assert mine.shape == tuple(tensor.shape.tolist())[::-1]
        assert (mine.start, mine.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert (
            bytes(mine.blocks()[-1]) == tensor.data.tobytes()[-mine.blocks().shape[1] :]
        )
    return ours


def test_a_small_file_reads_like_the_reference(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(3,), (5, 7), (2, 3, 4), (2, 3, 4, 5), (1,), (64, 32)] * 3
    tensors = {
        f"blk.{i}.weight": rng.normal(size=shape).astype(np.float32)
        for i, shape in enumerate(shapes)
    }
    entries = {"name": ("tiny", ValueKind.STRING, None)}
    path = write(tmp_path / "tiny.gguf", entries, tensors)
    assert len(assert_reads_like_the_reference(path).tensors) == 18


def test_the_real_file_reads_like_the_reference():
    file = assert_reads_like_the_reference(fetch("smollm2-135m"))
    assert len(file.tensors) == 272


def test_every_type_of_value(tmp_path):
    numbers = {
        ValueKind.UINT8: 255,
        ValueKind.INT8: -128,
        ValueKind.UINT16: 65_535,
        ValueKind.INT16: -32_768,
        ValueKind.UINT32: 2**32 - 1,
        ValueKind.INT32: -(2**31),
        ValueKind.FLOAT32: 0.5,
        ValueKind.BOOL: True,
        ValueKind.STRING: "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f600",
        ValueKind.UINT64: 2**64 - 1,
        ValueKind.INT64: -(2**63),
        ValueKind.FLOAT64: 1e300,
    }
    entries = {
        f"one.{kind.name}": (value, kind, None) for kind, value in numbers.items()
    }
    entries |= {
        f"list.{kind.name}": ([value] * 3, ValueKind.ARRAY, kind)
        for kind, value in numbers.items()
    }
    path = write(tmp_path / "types.gguf", entries, {"a": np.zeros(4, np.float32)})
    metadata = assert_reads_like_the_reference(path).metadata
    for kind, value in numbers.items():
        assert metadata[f"one.{kind.name}"] == value
        assert metadata[f"list.{kind.name}"] == [value] * 3
        assert type(metadata[f"one.{kind.name}"]) is type(value)


def test_another_alignment(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, np.arange(5, dtype=np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    tensors = assert_reads_like_the_reference(tmp_path / "a.gguf").tensors
    assert tensors["b"].start - tensors["a"].start == 256
    numbers = np.ascontiguousarray(tensors["b"].blocks()).view("<f4")[:, 0]
    assert numbers.tolist() == [0, 1, 2, 3, 4]


def test_reading_is_quick_and_maps_the_weights():
    start = time.perf_counter()
    tensor = read_gguf(fetch("smollm2-135m")).tensors["blk.0.ffn_up.weight"]
    assert time.perf_counter() - start < 3  # 0.2 s on a quiet core
    assert isinstance(tensor.blocks().base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tensor.blocks()[0, 0] = 1


# --- Files that cannot be used -------------------------------------------------------


def one_sentence_and_what_to_do(error):
    text = str(error)
    return "\n" not in text and len(text) < 700 and text.endswith(".")


def test_an_unknown_format_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("a", np.zeros((2, 84), np.uint8), raw_dtype=Kind.Q2_K)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with pytest.raises(ValueError, match="'a' has format 10; known are F32, F16, Q4_1"):
        read_gguf(tmp_path / "k.gguf")


HEADER = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)


def entry(name=b"a", dims=(4,), kind=0, offset=0):
    """A line of the table of tensors, as bytes."""
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    )


def pair(kind, value, key=b"k"):
    """A metadata entry with raw bytes as its value."""
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def with_pairs(*pairs):
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs)) + b"".join(pairs)


HUGE = struct.pack("<Q", 2**63)
RAW = {
    "empty": (b"", "ends before its header"),
    "short": (HEADER[:20], "ends before its header"),
    "a web page": (b"<!DOCTYPE html>" + bytes(99), r"b'<!DO'"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "b'vers'"),
    "version 1": (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "its version is 1"),
    "version 4": (struct.pack("<4sIQQ", b"GGUF", 4, 0, 0), "its version is 4"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "2 ** 64 tensors": (struct.pack("<4sIQQ", b"GGUF", 3, 2**64 - 1, 0), "are left"),
    "2 ** 64 entries": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**64 - 1), "are left"),
    "a long key": (with_pairs(HUGE), "a text of 9,223,372,036,854,775,808 bytes"),
    "a long text": (with_pairs(pair(8, HUGE)), "a text of 9,223"),
    "a long list": (with_pairs(pair(9, struct.pack("<I", 0) + HUGE)), "more than fit"),
    "texts without end": (
        with_pairs(pair(9, struct.pack("<IQ", 8, 2**61) + bytes(64))),
        "more than fit",
    ),
    "a list of lists": (
        with_pairs(pair(9, struct.pack("<IQIQ", 9, 1, 4, 0))),
        "no array of value type 9",
    ),
    "type 13": (with_pairs(pair(13, bytes(8))), "no value type 13"),
    "neither true nor false": (with_pairs(pair(7, b"\x02")), "2 is neither"),
    "no text": (with_pairs(pair(8, struct.pack("<Q", 2) + b"\xff\xfe")), "UTF-8"),
    "a key twice": (with_pairs(pair(0, b"\0"), pair(0, b"\0")), "'k' occurs twice"),
    "alignment 0": (
        with_pairs(pair(4, bytes(4), b"general.alignment")),
        "0 is not an alignment",
    ),
    "alignment text": (
        with_pairs(pair(8, bytes(8), b"general.alignment")),
        "'' is not an alignment",
    ),
    "no dimension": (HEADER + entry(dims=()) + bytes(64), "0 dimensions"),
    "5 dimensions": (HEADER + entry(dims=(1,) * 5) + bytes(64), "5 dimensions"),
    "2 ** 32 dimensions": (
        HEADER + struct.pack("<Q1sI", 1, b"a", 2**32 - 1) + bytes(64),
        "4294967295 dimensions",
    ),
    "nothing": (HEADER + entry(dims=(0,)) + bytes(64), r"\(0,\), which F32 cannot"),
    "half a block": (
        HEADER + entry(dims=(33,), kind=3) + bytes(64),
        "Q4_1 cannot hold",
    ),
    "too many numbers": (
        HEADER + entry(dims=(2**63, 2**63, 2**63, 2**63)) + bytes(64),
        "it ends at byte",
    ),
    "behind the end": (HEADER + entry(offset=2**63) + bytes(64), "it ends at byte"),
    "crooked": (HEADER + entry(offset=4) + bytes(64), "cannot start at"),
    "the last byte": (HEADER + entry() + bytes(22), "it ends at byte 80 of 79"),
    "twice": (
        struct.pack("<4sIQQ", b"GGUF", 3, 2, 0)
        + entry()
        + entry(offset=32)
        + bytes(99),
        "it occurs twice",
    ),
    "on top": (
        struct.pack("<4sIQQ", b"GGUF", 3, 2, 0) + entry() + entry(b"b") + bytes(99),
        "tensor b: it cannot start",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_damaged_bytes_are_named(tmp_path, name):
    content, message = RAW[name]
    path = tmp_path / "raw.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert one_sentence_and_what_to_do(caught.value)


def test_the_smallest_file_there_is(tmp_path):
    path = tmp_path / "raw.gguf"
    path.write_bytes(HEADER + entry() + bytes(23))
    assert not read_gguf(path).tensors["a"].blocks().any()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="79"):
        read_gguf(path)


def test_a_byte_more_or_less_among_the_numbers_is_seen(tmp_path):
    """Known mistake: every number behind it was read from another place."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in "ab":
        writer.add_tensor(name, np.arange(5, dtype=np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    content = path.read_bytes()
    assert len(content) == read_gguf(path).tensors["b"].start + 32  # 20 and padding
    for wrong in (content + b"0", content[:-60] + content[-59:], content[:-1]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="its tensors end at") as caught:
            read_gguf(path)
        assert one_sentence_and_what_to_do(caught.value)
    path.write_bytes(content[:-12])  # some writers leave the last padding out
    assert read_gguf(path).tensors.keys() == {"a", "b"}


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="fetch the file first"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_gguf(tmp_path)


# --- A model in several files ---------------------------------------------------------


def write_parts(folder, name="tiny", count=3, seed=0, extra=()):
    """The same small file whole, and in parts as llama-gguf-split and `gguf` cut it."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"blk.{i}.weight": rng.normal(size=(3, 32)).astype(np.float32)
        for i in range(2 * count)
    } | dict.fromkeys(extra, np.ones((3, 32), np.float32))
    for splits in (0, 2):
        writer = gguf.GGUFWriter(None, "llama", split_max_tensors=splits)
        writer.add_string("name", name)
        for key, array in tensors.items():
            writer.add_tensor(key, array)
        writer.write_header_to_file(path=folder / f"{name}.gguf")
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (folder / f"{name}.gguf").rename(folder.parent / f"{name}-whole.gguf")
    return folder.parent / f"{name}-whole.gguf", sorted(folder.glob(f"{name}-*.gguf"))


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "parts").mkdir()
    return write_parts(tmp_path / "parts")


def numbers(found):
    return {name: bytes(tensor.blocks()) for name, tensor in found.tensors.items()}


def test_any_part_and_the_folder_give_the_whole_model(parts):
    """Known mistake: a part is called damaged, as it has too few blocks."""
    whole, files = parts
    assert [file.name for file in files] == [
        f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)
    ]
    expected = read_gguf(whole)
    for path in (*files, files[0].parent):
        found = read_gguf(path)
        assert numbers(found) == numbers(expected)
        assert found.metadata["name"] == "tiny"
        assert found.metadata["general.architecture"] == "llama"


def refusal(path):
    with pytest.raises(ValueError, match="tiny-") as caught:
        read_gguf(path)
    return str(caught.value)


def test_a_missing_part_is_named_with_where_to_get_it(parts):
    files = parts[1]
    files[1].unlink()
    said = refusal(files[0])
    assert "is one of 3 parts of a model, and tiny-00002-of-00003.gguf is miss" in said
    assert "download it from where the others came" in said


def test_parts_that_do_not_belong_together_are_refused(parts, tmp_path):
    files = parts[1]
    third = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    assert "00003-of-00003.gguf cannot be used, split.no: it is not part 3" in (
        refusal(files[0])
    )
    (tmp_path / "other").mkdir()
    other = write_parts(tmp_path / "other", "other", count=4)[1]
    files[2].write_bytes(other[2].read_bytes())
    assert "it is not part 3 of 3" in refusal(files[0])
    of_seven = bytearray(third)  # a part of another model, cut into as many
    of_seven[third.index(b"split.tensors.count") + 19 + 4] = 7
    files[2].write_bytes(of_seven)
    assert "split.tensors.count: another part says otherwise" in refusal(files[0])
    files[2].write_bytes(third)
    assert len(read_gguf(files[0]).tensors) == 6


def test_a_part_with_another_name_is_not_called_damaged(parts):
    renamed = parts[1][1].rename(parts[1][1].with_name("tiny-x.gguf"))
    said = "is part 2 of 3 of a model, and its name does not say so: give all parts"
    assert said in refusal(renamed)


def test_a_folder_must_hold_one_model(parts):
    folder = parts[1][0].parent
    parts[0].rename(folder / "whole.gguf")
    assert "there are tiny-00001-of-00003.gguf, whole.gguf" in refusal(folder)
