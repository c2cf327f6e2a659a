"""The add_concat_group_norm kernels against float64: modes, paths, groups with channels of both inputs, layouts."""

import pytest
import torch
from comparison import LAYOUTS, assert_close, layouts, name_of
from golden_data import array
from interpreter import SIXTEEN_BITS

from resshift_fast.kernels import add_concat_group_norm, group_norm_tiles
from resshift_fast.kernels.launch import record
from resshift_fast.kernels.tuning import targeting
from resshift_fast.ops.group_norm import reference as group_norm

pytestmark = pytest.mark.usefixtures("poisoned_empty")

EPS = 1e-5
ONE, TWO = ["add_concat_group_norm_kernel"], ["merge_group_stats_kernel", "group_norm_apply_kernel"]
PATHS = {"registers": ONE, "split": TWO, "not-resident": TWO}
CASES = [  # B, channels of x and of other, groups, H, W; None for a sum
    (2, 20, None, 4, 5, 7),
    (1, 40, None, 8, 6, 3),
    (2, 16, 16, 4, 3, 5),
    (1, 20, 10, 2, 7, 5),
    (2, 10, 20, 6, 4, 3),
    (1, 33, 7, 8, 5, 5),
    (1, 1, 5, 1, 9, 4),
    (2, 7, 9, 2, 1, 1),
    (2, 3, None, 3, 1, 1),
]


def case_id(case):
    batch, first, second, groups, height, width = case
    return f"B{batch}-C{first}{f'+{second}' if second else ''}-G{groups}-H{height}-W{width}"


def force_path(path, monkeypatch):
    """Change the planner's constants so that small images take this path."""
    if path != "registers":
        monkeypatch.setattr(group_norm_tiles, "TILE", 128)
        monkeypatch.setattr(add_concat_group_norm, "TILE", 128)
    if path == "split":
        monkeypatch.setattr(group_norm_tiles, "SINGLE_ELEMENTS", 0)
        monkeypatch.setattr(group_norm_tiles, "MAX_PARTS", 2)
    else:
        monkeypatch.setattr(group_norm_tiles, "LAUNCH_CYCLES", 1e9)
    if path == "not-resident":
        monkeypatch.setattr(group_norm_tiles, "RESIDENT_TILE", 0)


def inputs(case, device, dtype=torch.float32, conditioned=True, activation="silu"):
    """The launcher's arguments: channels-last images of mean −2.3; scale and shift are the halves of one tensor."""
    batch, first, second, groups, height, width = case
    images = [array(f"merge.{i}", batch, c or first, height, width) - 2.3 for i, c in enumerate((first, second))]
    images = [x.to(device, dtype).contiguous(memory_format=torch.channels_last) for x in images]
    channels = first + (second or 0)
    weight, bias = (array(f"merge.{name}", channels).to(device, dtype) for name in ("weight", "bias"))
    rows = array("merge.rows", batch, 2 * channels).to(device, dtype)
    scale, shift = rows.chunk(2, dim=1) if conditioned else (None, None)
    return [*images, groups, weight, bias, EPS, "concat" if second else "add", scale, shift, activation]


def check(arguments, limit=1e-5):
    """The merged image equals PyTorch's sum or concatenation, and its norm has at most `limit` as relative error."""
    x, other, groups, weight, bias, eps, mode, scale, shift, activation = arguments
    merged, y = add_concat_group_norm.forward(*arguments)
    assert torch.equal(merged, x + other if mode == "add" else torch.cat([x, other], dim=1))
    rest = [None if t is None else t.double() for t in (scale, shift)]
    exact = group_norm(merged.double(), groups, weight.double(), bias.double(), eps, *rest, activation)
    assert merged.dtype == y.dtype == x.dtype
    assert merged.is_contiguous(memory_format=torch.channels_last) and y.stride() == merged.stride()
    assert_close("y", y, exact, limit)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_matches_float64(case, path, device, monkeypatch):
    force_path(path, monkeypatch)
    index = CASES.index(case) + list(PATHS).index(path)
    check(inputs(case, device, conditioned=index % 2 == 0, activation=("silu", None)[index // 2 % 2]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [case for case in CASES if case[2]], ids=case_id)
def test_a_normalization_without_the_concatenation(case, path, device, monkeypatch):
    force_path(path, monkeypatch)
    x, other, groups, weight, bias, *_ = inputs(case, device)
    y = add_concat_group_norm.concat_group_norm(x, other, groups, weight, bias, EPS, "silu")
    both = torch.cat([x, other], dim=1).double()
    exact = group_norm(both, groups, weight.double(), bias.double(), EPS, None, None, "silu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, exact, 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_the_concatenation_is_not_written_without_need(path, monkeypatch):
    force_path(path, monkeypatch)
    x, other, groups, weight, bias, *_ = inputs((1, 20, 20, 8, 9, 8), "meta")
    with record() as launches:
        add_concat_group_norm.concat_group_norm(x, other, groups, weight, bias, EPS, None)
    assert [x.name for x in launches] == (ONE if path == "registers" else [TWO[0], "concat_group_norm_kernel"])
    assert launches[0].parameters["p_merged"] is None


@pytest.mark.parametrize("path", PATHS)
def test_a_forced_path_is_taken(path, monkeypatch):
    force_path(path, monkeypatch)
    with record() as launches:
        add_concat_group_norm.forward(*inputs((1, 20, 20, 8, 9, 8), "meta"))
    assert [x.name for x in launches] == PATHS[path]
    if path == "split":
        assert launches[0].parameters["parts"] > 1
        assert launches[0].parameters["part_pixels"] > launches[0].constants["BLOCK_P"]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
@pytest.mark.parametrize("path", ["registers", "split"])
@pytest.mark.parametrize("second", [None, 10], ids=["add", "concat"])
def test_16_bit_images_are_normalized_after_rounding(second, path, dtype, device, monkeypatch):
    force_path(path, monkeypatch)
    check(inputs((2, 20, second, 2, 5, 7), device, dtype), torch.finfo(dtype).eps / 4)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype, device):
    arguments = inputs((1, 20, 10, 2, 5, 7), device)
    check([x.to(dtype) for x in arguments[:2]] + arguments[2:], torch.finfo(dtype).eps / 4)


@pytest.mark.parametrize("second", [None, 6], ids=["add", "concat"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, second, device):
    arguments = inputs((2, 6, second, 2, 5, 4), device)
    for i in (0, 1):
        changed = list(arguments)
        changed[i] = layouts(arguments[i].contiguous())[layout]
        check(changed)


@pytest.mark.parametrize("path", ["registers", "split"])
def test_rows_of_scale_and_shift_are_read_without_a_copy(path, device, monkeypatch):
    force_path(path, monkeypatch)
    arguments = inputs((3, 8, 4, 2, 3, 5), device)
    rows = {
        "halves": arguments[7:9],
        "expanded": [x[:1].expand(3, 12) for x in arguments[7:9]],
        "columns": [x.T.contiguous().T for x in arguments[7:9]],
    }
    for name, (scale, shift) in rows.items():
        changed = [*arguments[:7], scale, shift, "silu"]
        check(changed)
        with record() as launches:
            add_concat_group_norm.forward(*changed)
        read = launches[-1].parameters
        assert (read["p_scale"] is scale and read["p_shift"] is shift) == (name != "columns")


@pytest.mark.parametrize("second", [None, 10], ids=["add", "concat"])
@pytest.mark.parametrize("path", ["registers", "split"])
def test_a_mean_of_a_thousand_standard_deviations(path, second, device, monkeypatch):
    force_path(path, monkeypatch)
    arguments = inputs((1, 20, second, 2, 9, 7), device, conditioned=False, activation=None)
    check([x + 500 for x in arguments[:2]] + arguments[2:], 1e-6 if path == "registers" else 4e-5)


@pytest.mark.parametrize("path", ["registers", "split"])
def test_nan_stays_in_its_group(path, device, monkeypatch):
    force_path(path, monkeypatch)
    arguments = inputs((2, 12, 8, 4, 5, 3), device)
    arguments[1][1, 0, 2, 1] = torch.nan  # channel 12 of 20, in group 2
    merged, y = add_concat_group_norm.forward(*arguments)
    expected = torch.zeros(2, 20, dtype=torch.bool, device=device)
    expected[1, 10:15] = True
    assert torch.equal(y.isnan(), expected[:, :, None, None].expand_as(y))
    assert merged.isnan().sum() == 1


@pytest.mark.parametrize("path", PATHS)
def test_results_repeat_bitwise(path, device, monkeypatch):
    force_path(path, monkeypatch)
    arguments = inputs((2, 20, 10, 2, 5, 5), device)
    first, second = (add_concat_group_norm.forward(*arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


LAUNCHES = [  # B, channels of x and of other, side, kernels: the networks' calls
    (1, 128, None, 256, TWO),
    (1, 256, None, 128, TWO),
    (1, 512, None, 64, TWO),
    (1, 512, None, 16, ONE),
    (1, 160, 160, 64, TWO),
    (1, 320, 160, 64, TWO),
    (1, 320, 160, 32, TWO),
    (1, 320, 160, 16, ONE),
    (1, 160, 160, 32, ONE),
    (1, 320, 320, 16, ONE),
    (1, 640, 320, 16, ONE),
    (1, 640, 640, 8, ONE),
    (64, 160, 160, 64, TWO),
]


@pytest.mark.parametrize("batch, first, second, side, kernels", LAUNCHES)
def test_launches(batch, first, second, side, kernels):
    arguments = inputs_without_memory(batch, first, second, side, side)
    with record() as launches:
        add_concat_group_norm.forward(*arguments)
    assert [x.name for x in launches] == kernels
    read = sum(x.numel() for x in arguments[:2])
    merged = batch * (first + (second or 0)) * side**2
    written_and_read_again = 2 * merged if kernels == ONE else 3 * merged
    assert sum(x.num_bytes for x in launches) == pytest.approx(2 * (read + written_and_read_again), rel=0.1)
    if kernels == TWO:
        assert launches[0].grid[0] >= 128  # enough programs for a GPU at batch 1


def inputs_without_memory(batch, first, second, height, width, dtype=torch.bfloat16):
    def image(channels):
        return torch.empty(batch, channels, height, width, dtype=dtype, device="meta").contiguous(
            memory_format=torch.channels_last
        )

    weight = torch.empty(first + (second or 0), dtype=dtype, device="meta")
    mode = "concat" if second else "add"
    return [image(first), image(second or first), 32, weight, weight, EPS, mode, None, None, "silu"]


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("sizes", [(1, 128, None, 8192, 4096), (70000, 320, 320, 8, 8)], ids=str)
def test_huge_tensors_fit_the_grid(sizes, arch):
    with targeting(arch), record() as launches:
        merged, _ = add_concat_group_norm.forward(*inputs_without_memory(*sizes))
    assert merged.numel() > 1 << 31
    assert all(len(x.grid) == 1 and 0 < x.grid[0] < 1 << 31 for x in launches)


def test_unsupported_arguments_have_a_reason():
    assert add_concat_group_norm.unsupported(*inputs_without_memory(1, 32, 32, 4, 4)) is None
    assert "float64" in add_concat_group_norm.unsupported(*inputs_without_memory(1, 32, 32, 4, 4, torch.float64))
    arguments = inputs_without_memory(1, 3000, 3000, 1, 1)
    arguments[2] = 1
    assert "6000 channels a group" in add_concat_group_norm.unsupported(*arguments)
