"""Means of the terms that an objective logs."""

import torch

from resshift_fast.training.means import Means


def test_means_are_those_of_all_samples_and_start_anew():
    means = Means(("a", "b", "c"), "cpu")
    means.count("a", torch.tensor([1.0, 2.0]))
    means.count("c", torch.tensor([5.0], requires_grad=True))
    means.count("a", torch.tensor([6.0], dtype=torch.float16))
    assert means.report(lambda sums: 2 * sums) == {"a": 3.0, "c": 5.0}  # as two equal processes
    assert means.report(lambda sums: sums) == {}
