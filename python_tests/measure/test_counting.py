"""Counts of operators and bytes: graphs counted by hand, and an upper bound for a whole sample."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast import ops, use_backend
from resshift_fast.measure import roofline
from resshift_fast.measure.counting import Counter, Row, by_shape, count_sample, measure_sample, total
from resshift_fast.models import catalog

pytest.importorskip("triton")


def counts(rows):
    return {name: (row.count, row.num_bytes) for name, row in rows.items()}


def test_counts_equal_those_by_hand():
    with FakeTensorMode():
        x, w = torch.empty(4, 8, device="cuda"), torch.empty(8, 16, device="cuda", dtype=torch.float32)
        with Counter() as counter:
            y = x.t().reshape(32)  # a view, then a clone: 128 bytes read, 128 written
            z = y.view(4, 8) @ w  # 128 + 512 read, 256 written
            z.add_(1)  # 256 read, 256 written
            z.half()  # 256 read, 128 written
    assert counts(counter.rows)["aten::mm"] == (1, 128 + 512 + 256)
    assert counter.rows["aten::mm"].matrix_operations == 2 * 4 * 8 * 16
    assert counts(counter.rows)["aten::clone"] == (1, 256)
    assert counts(counter.rows)["aten::add_"] == (1, 512)
    assert counts(counter.rows)["aten::_to_copy"] == (1, 384)
    assert not {"aten::view", "aten::t", "aten::transpose", "aten::permute"} & counter.rows.keys()
    assert total(counter.rows).num_bytes == sum(row.num_bytes for row in counter.rows.values())


def test_an_operator_counts_its_launches_and_their_bytes():
    from resshift_fast import backends
    from resshift_fast.kernels.launch import record

    name = "resshift_fast::window_attention"
    with FakeTensorMode():
        qkv = torch.empty(1, 64, 64, 3 * 192, device="cuda", dtype=torch.bfloat16)
        table = torch.empty(225, 6, device="cuda", dtype=torch.bfloat16)
        with Counter() as counter, torch.no_grad():
            ops.window_attention(qkv, table, num_heads=6, window_size=8, shift_size=4)
        with record() as launches:
            backends.kernel("window_attention", "triton").function(qkv, table, 6, 8, 4, "resshift")
    assert counts(counter.rows) == {name: (len(launches), sum(launch.num_bytes for launch in launches))}
    # qkv is read once and the result written once; the table is small.
    assert 0 <= counter.rows[name].num_bytes - 4 * 64 * 64 * 192 * 2 <= 64 * 1024
    assert counter.rows[name].matrix_operations == 4 * 64 * 64 * 64 * 192


@pytest.mark.parametrize("algorithm", ["split", "sums", "pytorch"])
def test_matrix_operations_of_a_launcher_are_counted_once(algorithm, monkeypatch):
    """If the launcher calls PyTorch's convolution, that counts by itself."""
    from resshift_fast.kernels import conv2d_algorithms, tuning

    monkeypatch.setattr(conv2d_algorithms.BLOCKS, "default", lambda arch, key: tuning.Algorithm(algorithm))
    tuning.renew()
    channels, side = 64, 8

    def empty(*size):
        return torch.empty(size, device="cuda", dtype=torch.bfloat16)

    with FakeTensorMode(), Counter() as counter, torch.no_grad():
        weight, vector = empty(channels, channels, 3, 3).to(memory_format=torch.channels_last), empty(channels)
        norm = vector, vector, weight, vector
        ops.residual_block(empty(1, channels, side, side), None, 32, *norm, *norm)
    tuning.renew()
    kernels = {call.kernel for call in counter.rows["resshift_fast::residual_block"].calls}
    assert ("aten::convolution" in kernels) == (algorithm == "pytorch")
    assert total(counter.rows).matrix_operations == 2 * 2 * 9 * channels**2 * side**2


def test_an_unsupported_call_counts_as_plain_pytorch():
    with FakeTensorMode():
        x, w = torch.empty(1, 8, 4, 4, device="cuda", dtype=torch.float64), torch.empty(8, device="cuda").double()
        with Counter() as counter, torch.no_grad():
            ops.group_norm(x, 4, w, w)
    assert counter.rows["resshift_fast::group_norm"].count > 1


def test_the_reference_counts_its_own_operators():
    with FakeTensorMode(), use_backend("reference"):
        x, w = torch.empty(1, 8, 4, 4, device="cuda"), torch.empty(8, device="cuda")
        with Counter() as counter, torch.no_grad():
            ops.group_norm(x, 4, w, w)
    assert counter.rows["aten::native_group_norm"].count == 1
    assert not any(name.startswith("resshift_fast") for name in counter.rows)


@pytest.mark.slow
def test_a_sample_stays_within_the_bound():
    rows = count_sample("realsr-x4-v3", "fused")
    assert total(rows).count <= 760
    assert total(rows).num_bytes <= 4.2e9


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nano-x4", "inpaint-imagenet", "realsr-x2"])
def test_fused_has_fewer_operators_and_bytes_than_plain(model):
    side = catalog.get(model).pad_multiple
    plain, fused = (total(count_sample(model, path, size=(side, side))) for path in ("plain", "fused"))
    assert fused.count < plain.count / 2 and fused.num_bytes < plain.num_bytes


def test_a_one_step_student_costs_a_quarter_of_four_steps():
    teacher, student = (total(count_sample(name, size=(16, 16))) for name in ("nano-x4", "nano-x4-1step"))
    assert teacher.matrix_operations / 4 <= student.matrix_operations < 0.26 * teacher.matrix_operations
    assert student.count < 0.32 * teacher.count


def test_bytes_grow_with_the_batch_and_operators_do_not():
    one, four = (total(count_sample("nano-x4", "fused", batch=batch)) for batch in (1, 4))
    assert one.count == four.count and 2 < four.num_bytes / one.num_bytes < 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nano-x4", "fast"), "path is 'fast', expected one of plain, fused"),
        (("nano",), "unknown model"),
        (("realsr-x4-v3", "fused", (64, 65)), "size is 64×65, expected multiples of 64"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    options = {"size": arguments[2]} if len(arguments) > 2 else {}
    with pytest.raises(ValueError, match=message):
        count_sample(*arguments[:2], **options)


def test_a_batch_reads_the_weights_once_and_takes_no_more_memory_a_picture():
    one, sixteen = (measure_sample("nano-x4", batch=batch) for batch in (1, 16))
    # 15 pictures save the weights that are read in every step, most of all, and no more than that.
    steps = catalog.get("nano-x4").schedule.num_steps
    saved = 16 * total(one.rows).num_bytes - total(sixteen.rows).num_bytes
    assert 0.5 * steps * one.weight_bytes < saved / 15 < 1.2 * steps * one.weight_bytes
    assert sixteen.weight_bytes == one.weight_bytes and sixteen.prepared_bytes == one.prepared_bytes
    assert 0.9 * one.peak_bytes < sixteen.peak_bytes / 16 <= one.peak_bytes


@pytest.mark.slow
def test_what_is_derived_once_is_counted_apart():
    sample = measure_sample("nano-x4")
    denoiser = catalog.build_denoiser(catalog.get("nano-x4"))
    products = 2 + len(denoiser.modulation_layers())
    assert sample.preparation["aten::addmm"].count == products and "aten::addmm" not in sample.rows
    assert measure_sample("nano-x4", "plain").rows["aten::addmm"].count >= products
    assert 0 < sample.prepared_bytes < sample.weight_bytes


def test_peak_memory_is_that_by_hand():
    with FakeTensorMode():
        x = torch.empty(256, device="cuda")
        with Counter() as counter:
            y = x + 1  # 1024 bytes
            z = y.view(16, 16) * 2  # and 1024
            del y
            z.add_(1)
            w = torch.cat([z, z])  # and 2048, without those of y
            del z
            w.sum()
    assert counter.live.peak == 3072
    assert counter.live.now <= 2048 + 4


def test_launches_by_shape():
    with FakeTensorMode():
        x, w = torch.empty(1, 64, 32, 32, device="cuda"), torch.empty(64, device="cuda")
        weight = torch.empty(320, 64, 3, 3, device="cuda")
        with Counter() as counter, torch.no_grad():
            for _ in range(3):
                ops.group_norm(x, 32, w, w)
            torch.conv2d(x, weight, padding=1)
    found = {launches.first.kernel: launches for launches in by_shape(counter.rows)}
    norm = found["group_norm_fwd_kernel"]
    assert (norm.operator, norm.count, norm.first.shape) == (
        "resshift_fast::group_norm",
        3,
        "1x64x32x32 -> 1x64x32x32",
    )
    assert norm.first.blocks == 64 and not norm.first.estimated and norm.filled(128) == 0.5 and norm.filled(8) == 1
    convolution = found["aten::convolution"]
    assert convolution.first.shape == "1x64x32x32 -> 1x320x32x32"
    assert convolution.first.blocks == 8 * 3 and convolution.first.estimated  # tiles of 128 pixels and 128 channels
    assert sum(launches.num_bytes for launches in found.values()) == total(counter.rows).num_bytes


def test_a_floor_is_the_larger_of_memory_and_compute_time():
    row = Row()
    row.add(3350, 1)  # a nanosecond of an H100's bandwidth
    row.add(1, 2 * 989_000)  # two of its 16-bit matrix rate
    floor = roofline.project({"op": row}, roofline.get("h100"))["op"]
    assert floor.seconds == pytest.approx(3e-9) and floor.memory_bound == 1 and floor.count == 2
    slower = roofline.project({"op": row}, roofline.get("h100"), element_size=4)["op"]
    assert slower.seconds == pytest.approx(1e-9 + 2 * 989_000 / 67e12)


@pytest.mark.parametrize(
    "call, seconds, limit",
    [
        ((3_350_000_000, 0, "", "", 132), 1e-3, "bytes"),  # of the whole bandwidth
        # a multiprocessor reads 5120 / 108 bytes in a clock
        ((86_755_555, 0, "", "", 1), 1e-3, "bytes"),
        ((0, 989_000_000_000, "", "", 132), 1e-3, "operations"),
        ((0, 989_000_000_000, "", "", 33), 4e-3, "operations"),  # a quarter of the multiprocessors
        ((0, 989_000_000_000, "", "", 133), 264 / 133 * 1e-3, "operations"),  # one has two blocks
        ((1000, 1000, "", "", 132), 2e-6, "launch"),
    ],
    ids=["memory", "one block reads", "matrix rate", "33 blocks", "133 blocks", "small"],
)
def test_projected_time_of_a_call(call, seconds, limit):
    row = Row()
    row.add(*call)
    (found,) = roofline.expect({"op": row}, roofline.get("h100")).values()
    assert found.seconds == pytest.approx(seconds, rel=1e-5) and found.count == 1
    assert [name for name, count in found.limited.items() if count] == [limit]


def test_projected_times_by_kernel():
    row = Row()
    row.add(0, 0, "first_kernel")
    row.add(0, 0, "second_kernel")
    row.add(0, 0, "second_kernel")
    found = roofline.expect({"op": row}, roofline.get("a100"), launch_seconds=1e-6, by_kernel=True)
    assert {name: x.seconds for name, x in found.items()} == pytest.approx(
        {"second_kernel": 2e-6, "first_kernel": 1e-6}
    )


def test_measured_times_of_an_acceptance(tmp_path):
    kernels = [
        {"kernel": "group_norm_fwd_kernel", "operator": "resshift_fast::group_norm", "calls": "3.0", "ms": "0.5"},
        {"kernel": "void cudnn::one", "operator": "aten::convolution", "calls": "1.0", "ms": "0.25"},
        {"kernel": "void cudnn::two", "operator": "aten::convolution", "calls": "2.0", "ms": "0.75"},
    ]
    tables = {"kernels.csv": kernels, "workload.json": {"title": "a case", "device_name": "NVIDIA H100"}}
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"steps": {"profile": {"tables": tables}}}))
    times, workload = roofline.measured_kernels(path)
    assert times == pytest.approx({"group_norm_fwd_kernel": 5e-4, "aten::convolution": 1e-3})
    assert workload["title"] == "a case"
    path.write_text(json.dumps({"steps": {"smoke": {}}}))
    with pytest.raises(ValueError, match="has no profile of kernels .*'profile'"):
        roofline.measured_kernels(path)


def test_an_unknown_gpu_is_refused():
    with pytest.raises(ValueError, match="unknown GPU 'h1000', expected one of h100, h200, a100, l40s, 4090"):
        roofline.get("h1000")
