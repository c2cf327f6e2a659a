"""Launches of few thread blocks, and the table of them in the documentation."""

from pathlib import Path

import pytest

from resshift_fast.measure.blocks import REASONS, Few, few_blocks, table
from resshift_fast.measure.counting import Row, count_sample, total

ENOUGH, MORE = 108, 132  # multiprocessors of an A100 and of an H100
PAGE = Path(__file__).parents[2] / "docs/performance.md"


@pytest.fixture
def rows():
    products, sums = Row(), Row()
    for blocks, side in ((100, 8), (100, 8), (80, 16), (108, 32)):
        products.add(1_000_000, 0, "conv2d_kernel", f"1x640x{side}x{side} -> 1x320x{side}x{side}", blocks, False)
    products.add(7_000_000, 0, "other_kernel", "1x320x8x8 -> 1x320x8x8", 102, False)
    sums.add(4, 0, "aten::sum", "scalar -> scalar", 1, True)
    return {"residual_block": products, "sum": sums}


def test_launches_of_fewer_blocks_are_put_together_by_kernel(rows):
    other, product, summed = few_blocks(rows, ENOUGH)
    reason = REASONS["conv2d_kernel"]
    assert product == Few("conv2d_kernel", ("640x8x8", "640x16x16"), 3, 3_000_000, (80, 100), False, reason)
    assert other == Few("other_kernel", ("320x8x8",), 1, 7_000_000, (102, 102), False, "")
    assert summed.kernel == "aten::sum" and summed.estimated and summed.blocks == (1, 1)
    assert few_blocks(rows, 1) == []


def test_nearly_enough_blocks_are_a_reason(rows):
    other, few, nearly, _ = few_blocks(rows, 113)
    assert nearly.blocks == (108, 108) and nearly.reason.startswith("at least 95 % of them")
    assert few.kernel == nearly.kernel == "conv2d_kernel" and few.blocks == (80, 100)
    assert few.reason == REASONS["conv2d_kernel"] and not other.reason


def test_the_table_is_markdown(rows):
    head, rule, *lines = table(few_blocks(rows, ENOUGH)).splitlines()
    assert head.count("|") == rule.count("|") == 7 and len(lines) == 3
    assert lines[0] == "| `other` | 320x8x8 | 1 | 102 | 7.0 |  |"
    assert lines[1].startswith("| `conv2d` | 640x8x8, 640x16x16 | 3 | 80 to 100 | 3.0 | the sum over")
    assert lines[2].startswith("| `aten::sum` | 1 | 1 | ~1 | 0.0 | ")


@pytest.mark.slow
def test_every_launch_of_the_network_has_enough_blocks_or_a_reason():
    """And the table in the documentation is current: `resshift-fast bench count --fewer-blocks 108` prints it."""
    pytest.importorskip("triton")
    rows = count_sample("realsr-x4-v3")
    found = few_blocks(rows, ENOUGH)
    assert [few.kernel for few in (*found, *few_blocks(rows, MORE)) if not few.reason] == []
    page, count = PAGE.read_text(encoding="utf-8"), total(rows).count
    assert table(found) in page
    enough = count - sum(few.launches for few in found)
    assert f"Of the {count} launches of a sample" in page and f" {enough} have {ENOUGH} blocks or more" in page
