"""torch.compile, torch.export and fake CUDA tensors with the networks and the whole chain: one graph for every size."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from comparison import relative_error
from golden_data import fill_
from pipelines import fresh
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resshift_fast import ops, use_backend
from resshift_fast.backends import unavailable
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import AutoencoderConfig, VQAutoencoder
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.restoration.fake_gpu import Bindings
from resshift_fast.restoration.sampler import LatentChain

WINDOW = 4
# Batch, height and width; the first is non-square, and the lowest level has a single window in one direction.
SIZES = [(2, 1, 2), (3, 2, 1), (2, 3, 4), (4, 2, 2)]


def config(levels: int) -> SwinUNetConfig:
    """A denoiser whose input is a multiple of WINDOW · 2^(levels − 1) pixels, with a shifted window."""
    side = 2 * WINDOW * 2 ** (levels - 1)
    return SwinUNetConfig(
        image_size=side,
        in_channels=3,
        out_channels=3,
        model_channels=32,
        num_res_blocks=(1,) * levels,
        attention_resolutions=(),
        channel_mult=(1,) * levels,
        swin_embed_dim=32,
        window_size=WINDOW,
        mlp_ratio=1.0,
        lq_size=side,
    )


@cache
def denoiser(levels: int) -> SwinUNet:
    return fill_(SwinUNet(config(levels))).eval().requires_grad_(False)


@cache
def chain() -> LatentChain:
    return LatentChain(denoiser(1), Schedule(steps=2))


@cache
def autoencoder() -> VQAutoencoder:
    sizes = AutoencoderConfig(channels=32, channel_mult=(1, 1), num_res_blocks=(1, 1), codebook_size=16)
    return fill_(VQAutoencoder(sizes)).eval().requires_grad_(False)


def normal(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def denoiser_arguments(batch: int, height: int, width: int) -> tuple:
    x = normal(batch, 8 * height, 8 * width)
    return x, torch.arange(batch), x.flip(1)


def images(batch: int, height: int, width: int) -> tuple:
    return (normal(batch, 4 * height, 4 * width),)


def chain_arguments(batch: int, height: int, width: int) -> tuple:
    y = normal(batch, WINDOW * height, WINDOW * width)
    return y, y.flip(1), torch.arange(batch) + 2**40


# By name: (makes the program, makes its arguments for a batch, height and width).
PROGRAMS: dict[str, tuple[Callable, Callable]] = {
    "denoiser": (lambda: denoiser(2), denoiser_arguments),
    "encode": (lambda: autoencoder().encode, images),
    "decode": (lambda: autoencoder().decode, images),
    "chain": (chain, chain_arguments),
}


def program(name: str) -> tuple[Callable, Callable]:
    make, arguments = PROGRAMS[name]
    return make(), arguments


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_graph_serves_every_size(name):
    function, arguments = program(name)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES:
        args = arguments(*size)
        assert relative_error(compiled(*args), function(*args)) <= 1e-5
        assert counter.frame_count == 1, f"traced again for {size}"


@pytest.mark.slow
def test_one_graph_serves_every_size_with_ahead_of_time_autograd():
    function, arguments = program("encode")
    # Without this, floats of modules are traced as inputs first, which takes twice the time and ends in the same graph.
    with torch._dynamo.config.patch(specialize_float=True):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
        for size in SIZES:
            args = arguments(*size)
            assert relative_error(compiled(*args), function(*args)) <= 1e-5
            assert counter.frame_count == 1, f"traced again for {size}"


@pytest.mark.slow
def test_a_prepared_chain_is_one_graph_that_follows_its_weights():
    network = fill_(SwinUNet(config(1))).eval().requires_grad_(False)
    sampler = LatentChain(network, Schedule(steps=2))
    sampler.prepare()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(sampler, fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES[:2]:
        args = chain_arguments(*size)
        assert relative_error(compiled(*args), sampler(*args)) <= 1e-5
        network.time_embed[2].bias.add_(0.5)
        expected = sampler(*args)
        assert relative_error(compiled(*args), expected) > 1e-3
        sampler.prepare()
        assert relative_error(compiled(*args), expected) <= 1e-5
        assert counter.frame_count == 1, f"traced again for {size}"


@pytest.mark.slow
def test_the_reference_compiles_without_a_break():
    """Its window attention branches on sizes, so the number of graphs is not checked."""
    function, arguments = program("decode")
    with use_backend("reference"):
        args = arguments(2, 2, 3)
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
        assert relative_error(compiled(*args), function(*args)) <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}")
def test_a_pipeline_on_cpu_kernels_is_one_graph():
    """With normalizations fused into convolutions and with prepacked weights."""
    restoration = fresh("x4-vq", steps=2).restoration  # each further step adds as much tracing time
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(restoration, fullgraph=True, dynamic=True, backend=counter)
    for batch, height, width in SIZES[:3]:
        image = normal(batch, 16 * height + 2 * restoration.margin, 16 * width + 2 * restoration.margin)
        seed = torch.arange(batch)
        (ours, finite), (expected, _) = compiled(image, seed), restoration(image, seed)
        assert finite and relative_error(ours, expected) <= 1e-5
        assert counter.frame_count == 1, f"traced again for {batch, height, width}"
    calls = [node for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    names = {str(call.target) for call in calls}
    for operator in ("window_attention", "swin_mlp", "pointwise_conv2d", "spatial_attention", "vector_quantize"):
        assert f"resshift_fast.{operator}.default" in names
    convolutions = [call for call in calls if str(call.target) == "resshift_fast.conv2d.default"]
    assert any("silu" in call.args or call.kwargs.get("activation") == "silu" for call in convolutions)


def test_the_choice_of_a_backend_is_part_of_the_graph():
    (x,), codebook = images(2, 1, 2), autoencoder().quantize.embedding.weight

    def function(x: Tensor) -> Tensor:
        return ops.vector_quantize(x, codebook)[0]

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    expected = function(x)
    for backend, graphs in (("auto", 1), ("reference", 2), ("auto", 2), ("reference", 2)):
        with use_backend(backend):
            assert relative_error(compiled(x), expected) <= 1e-5
        assert counter.frame_count == graphs
    opaque = [any("resshift_fast" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert opaque == [True, False]


@pytest.mark.slow
def test_the_chain_exports_with_dynamic_sizes(tmp_path):
    batch, height, width = Dim("batch", min=1, max=64), Dim("h", min=1, max=256), Dim("w", min=1, max=256)
    sizes = {0: batch, 2: WINDOW * height, 3: WINDOW * width}
    exported = torch.export.export(
        chain(), chain_arguments(2, 2, 3), dynamic_shapes={"y": sizes, "lq": sizes, "seed": {0: batch}}
    )
    torch.export.save(exported, tmp_path / "chain.pt2")
    loaded = torch.export.load(tmp_path / "chain.pt2").module()
    for size in [*SIZES, (1, 1, 1), (1, 5, 2)]:
        args = chain_arguments(*size)
        ours = loaded(*args)
        assert relative_error(ours, chain()(*args)) <= 1e-6
        assert ours.equal(loaded(*args))
    y, lq, seed = chain_arguments(2, 2, 3)
    assert not loaded(y, lq, seed).equal(loaded(y, lq, seed + 1))  # the seed is not a constant of the program


def test_the_chain_is_bitwise_repeatable():
    args = chain_arguments(2, 2, 3)
    assert chain()(*args).equal(chain()(*args))


class Watch(TorchDispatchMode):
    """Records the names of the operators in the context, and those that returned a tensor outside the GPU."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(f"{function.namespace}::{function.overloadpacket.__name__}")
        if any(isinstance(x, Tensor) and x.device.type != "cuda" for x in tree_leaves(result)):
            self.elsewhere.append(str(function))
        return result


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "_unique2", "item")
RANDOM = ("rand", "randn", "randint", "randperm", "normal", "uniform", "bernoulli", "exponential", "multinomial")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_a_graph_can_capture_the_chain_on_a_gpu(dtype):
    """On fake CUDA tensors no operator waits for the device, leaves it, depends on values or draws random numbers."""
    with torch.device("meta"):
        network = SwinUNet(config(2)).to(dtype)
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the network's tensors, until they are on the device
    with fake, Bindings(), torch.no_grad():
        sampler = LatentChain(network.to_empty(device="cuda"), Schedule(steps=2))
        y = torch.empty(2, 3, 8, 16, device="cuda")
        seed = torch.empty(2, dtype=torch.int64, device="cuda")
        origin = torch.empty(2, 2, dtype=torch.int64, device="cuda")
        fake.allow_non_fake_inputs = False
        with Watch() as watch:
            x = sampler(y, y, seed, origin=origin)
    assert (x.shape, x.dtype, x.device.type) == (y.shape, torch.float32, "cuda")
    assert {"resshift_fast::prior_sample", "resshift_fast::posterior_step"} <= watch.names
    assert not watch.elsewhere
    plain = {name.removeprefix("aten::").removesuffix("_like").rstrip("_") for name in watch.names}
    assert not plain & {*WAITS, *RANDOM}


def test_watch_finds_tensors_outside_the_gpu_and_random_numbers():
    with FakeTensorMode(), Bindings(), Watch() as watch:
        x = torch.empty(3, device="cuda")
        torch.ops.aten._to_copy(x, device="cpu")
        torch.rand_like(x)
    assert len(watch.elsewhere) == 1
    assert "aten::rand_like" in watch.names
