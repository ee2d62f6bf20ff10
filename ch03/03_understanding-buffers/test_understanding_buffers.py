"""What the notebook says of PyTorch and of this course's layers, tried further."""

import copy

import pytest
import torch
from torch import nn

from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
)

LAYERS = {
    "one head": lambda: CausalAttention(6, 4, 5, 0.0),
    "a list of heads": lambda: MultiHeadAttentionWrapper(6, 2, 5, 0.0, 2),
    "all heads": lambda: MultiHeadAttention(6, 4, 5, 0.0, 2),
}


@pytest.fixture(params=LAYERS, ids=lambda name: name.replace(" ", "-"))
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


def plain_tensors(module):
    return [
        name
        for part in module.modules()
        for name, value in vars(part).items()
        if torch.is_tensor(value)
    ]


def test_a_layer_moves_as_a_whole(layer):
    """Known mistake: a mask as a plain attribute stays behind, on any machine."""
    assert plain_tensors(layer) == []
    layer.to("meta")
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert layer(torch.zeros(2, 5, 6, device="meta")).shape == (2, 5, 4)


def test_a_plain_mask_is_found_by_a_move(layer):
    """The mistake planted: the same move, then a call."""
    for part in layer.modules():
        if "mask" in dict(part.named_buffers(recurse=False)):
            mask = part.mask
            del part.mask
            part.mask = mask
    assert plain_tensors(layer)
    layer.to("meta")
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.zeros(2, 5, 6, device="meta"))


def test_a_plain_table_passes_a_call_on_meta():
    """So a call there is no proof; the devices have to be asked for."""
    x, table = torch.zeros(2, 3, device="meta"), torch.ones(3, 3)
    ids = torch.zeros(2, dtype=torch.long, device="meta")
    assert (x @ table).device.type == "meta"
    assert (x + torch.tensor(1.0)).device.type == "meta"
    assert nn.functional.embedding(ids, table).shape == (2, 3)


def test_data_parallel_shares_what_is_no_tensor():
    """What the notebook's `replica_of` does on any device, in PyTorch's own replica."""
    module = nn.Linear(1, 1)
    module.log = []
    replica = module._replicate_for_data_parallel()
    assert replica.log is module.log
    assert replica._buffers is not module._buffers


def test_made_on_meta_then_given_memory_the_mask_must_be_made_again(layer):
    """A buffer that is not saved is in no file, and `to_empty` leaves it empty."""
    saved = layer.state_dict()
    assert not [name for name in saved if "mask" in name]
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    for name, buffer in empty.named_buffers():
        assert buffer.shape == dict(layer.named_buffers())[name].shape
    for name, mask in layer.named_buffers():
        empty.get_buffer(name).copy_(mask)
    empty.load_state_dict(saved)
    x = torch.randn(2, 5, 6)
    assert torch.equal(empty(x), layer(x))


def test_half_precision_leaves_boolean_masks(layer):
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in half.buffers()} == {torch.bool}


def test_an_optimizer_never_sees_a_buffer(layer):
    masks = {id(buffer) for buffer in layer.buffers()}
    optimizer = torch.optim.AdamW(layer.parameters())
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert masks
    assert not masks & given


def test_data_parallel_without_a_card_is_the_module_itself(layer):
    """So its replicas cannot be shown here, and the notebook makes its own."""
    if torch.cuda.is_available():
        pytest.skip("with a card DataParallel makes replicas")
    x = torch.randn(2, 5, 6)
    assert torch.equal(nn.DataParallel(layer)(x), layer(x))
