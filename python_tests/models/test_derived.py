"""Tensors derived from weights once: which changes of the weights are seen, addresses, copies, threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden_data import fill_
from torch import nn

from resshift_fast import ops
from resshift_fast.models.autoencoder import _Downsample
from resshift_fast.models.derived import Derived
from resshift_fast.models.layers import UpsampleConv


class Squares(nn.Module):
    """Two weights, and the sum of their squares as a derived tensor; `times` counts how often it was derived."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor([1.0, 2.0]) + i) for i in range(2))
        self.squares = Derived()
        self.times = 0

    def compute(self):
        self.times += 1
        return (self.first**2 + self.second**2).detach()

    def sources(self):
        return self.first, self.second

    def prepare(self, changed=False):
        self.squares.refresh(self.sources(), self.compute, changed)

    def forward(self):
        value = self.squares.current(self.sources)
        return self.first**2 + self.second**2 if value is None else value


@pytest.fixture
def module():
    module = Squares()
    module.prepare()
    with torch.no_grad():
        yield module


def is_derived(module):
    return module() is module.squares.value


def test_it_is_derived_once(module):
    module.prepare()
    assert module.times == 1 and is_derived(module) and module().tolist() == [5, 13]


def in_place(module):
    module.second.mul_(3)


def optimizer_step(module):
    optimizer = torch.optim.SGD([module.first], lr=1.0)
    module.first.grad = torch.ones(2)
    optimizer.step()


def load(module):
    module.load_state_dict({"first": torch.tensor([7.0, 8.0]), "second": torch.tensor([9.0, 10.0])})


def assign(module):
    module.load_state_dict({"first": torch.zeros(2), "second": torch.ones(2)}, assign=True)


def replace(module):
    module.first = nn.Parameter(torch.tensor([-1.0, 5.0]))


def replace_with_the_same_memory(module):
    module.first.add_(0)  # its version is 1
    module.prepare()
    module.first = nn.Parameter(module.first.detach(), requires_grad=False)
    module.first.mul_(2)


def other_data(module):
    module.first.data = torch.tensor([4.0, 4.0])


def other_data_at_the_same_address(module):
    """Free the old memory first, so that an allocator may give it out again."""
    module.first.data = torch.empty(0)
    module.first.data = torch.tensor([6.0, 6.0])


def other_offset(module):
    both = torch.tensor([1.0, 2.0, 5.0, 5.0])
    module.first.data = both[:2]
    module.prepare()
    module.first.data = both[2:]


CHANGES = [
    in_place,
    optimizer_step,
    load,
    assign,
    replace,
    replace_with_the_same_memory,
    other_data,
    other_data_at_the_same_address,
    other_offset,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_a_source_is_seen(change, module):
    change(module)
    expected = module.first**2 + module.second**2
    assert not is_derived(module) and module().equal(expected)
    module.prepare()
    assert is_derived(module) and module().equal(expected)


def test_it_keeps_its_address_where_the_layout_stays(module):
    address = module.squares.value.data_ptr()
    module.first.add_(1)
    module.prepare()
    assert module.squares.value.data_ptr() == address and module().tolist() == [8, 18]
    module.double()
    module.prepare()
    assert module().dtype == torch.float64 and module().tolist() == [8, 18]


def test_conversion_to_the_same_dtype_keeps_it(module):
    address = module.squares.value.data_ptr()
    module.to(torch.float32).eval()
    module.prepare()
    assert module.squares.value.data_ptr() == address


def test_a_write_through_data_needs_to_be_declared(module):
    module.first.data.add_(1)
    module.prepare()
    assert module().tolist() == [5, 13]
    address = module.squares.value.data_ptr()
    module.prepare(changed=True)
    assert module().tolist() == [8, 18] and module.squares.value.data_ptr() == address


def test_with_gradients_it_is_not_used(module):
    with torch.enable_grad():
        module().sum().backward()
    assert module.first.grad.tolist() == [2, 4]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("stale", [False, True], ids=["current", "stale"])
def test_a_copy_derives_its_own(copied, stale, module):
    if stale:  # the copied weights' versions start at 0, as those of the original did
        module.first.add_(1)
    other = copied(module)
    assert other.squares.value is None and other().equal(module())
    other.prepare()
    other.first.add_(1)
    other.prepare()
    expected = [8, 18] if stale else [5, 13]
    assert module().tolist() == expected and other().equal(other.first**2 + other.second**2)


def test_the_state_dict_does_not_have_it(module):
    assert list(module.state_dict()) == ["first", "second"]
    assert list(dict(module.named_parameters())) == ["first", "second"]


def test_in_inference_mode(module):
    """It is no tensor of inference mode, so that it can be written again outside."""
    module.first.add_(1)
    with torch.inference_mode():
        module.prepare()
        assert is_derived(module)
    assert not module.squares.value.is_inference()
    module.first.add_(1)
    module.prepare()
    assert is_derived(module) and module().tolist() == [13, 25]


def test_weights_of_inference_mode_are_never_current(module):
    with torch.inference_mode():
        module.first = nn.Parameter(torch.tensor([2.0, 2.0]), requires_grad=False)
        module.prepare()
        assert module().tolist() == [8, 13]
        module.first.add_(1)
        module.prepare()
        assert module.squares.value is None and module().tolist() == [13, 18]


def test_threads_derive_it_once(module):
    module.first.add_(1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: module.prepare(), range(32)))
    assert module.times == 2


def test_compiled_code_reads_a_refreshed_tensor(module):
    from torch._dynamo.testing import CompileCounter  # which takes seconds

    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    assert compiled().tolist() == [5, 13]
    module.first.add_(1)
    module.prepare()
    assert compiled().tolist() == [8, 18] and counter.frame_count == 1


def test_upsampling_follows_its_weight():
    layer, x = fill_(UpsampleConv(16)), torch.ones(1, 16, 3, 4)
    layer.prepare()
    assert list(layer.state_dict()) == ["conv.weight", "conv.bias"]
    with torch.no_grad():
        for _ in range(2):
            assert layer.summed.current(lambda: [layer.conv.weight]).equal(ops.sum_upsample_taps(layer.conv.weight))
            layer.conv.weight.add_(0.5)
            assert layer.summed.current(lambda: [layer.conv.weight]) is None
            assert layer(x).equal(ops.upsample_conv2d(x, layer.conv.weight, layer.conv.bias))
            layer.prepare()


def test_downsampling_follows_its_weight():
    layer, x = fill_(_Downsample(16)), torch.ones(1, 16, 6, 8)
    assert list(layer.state_dict()) == ["conv.weight", "conv.bias"]
    with torch.no_grad():
        for _ in range(2):
            layer.conv.weight.add_(0.5)
            expected = layer(x)  # computed in the call
            layer.prepare()
            assert layer.padded.current(lambda: [layer.conv.weight]) is not None
            assert layer(x).equal(expected)
