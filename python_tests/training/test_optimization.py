"""The optimizer's step."""

import pytest
import torch

from resshift_fast.training.config import TrainConfig
from resshift_fast.training.optimization import Optimization, adamw

SHAPES = ((7, 5, 3, 3), (7,), (33, 18))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_its_paper(weight_decay):
    """Three steps in float64 by arXiv 1711.05101, algorithm 2, with the decay scaled by the learning rate."""
    config = TrainConfig(data="photos", run="run", lr=1e-2, betas=(0.8, 0.95), weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    parameters = [value.clone().requires_grad_() for value in values]
    optimizer = adamw(parameters, config)
    expected = [value.double() for value in values]
    first, second = ([torch.zeros_like(one) for one in expected] for _ in range(2))
    beta1, beta2 = config.betas
    for step in range(1, 4):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            first[i] = beta1 * first[i] + (1 - beta1) * gradient
            second[i] = beta2 * second[i] + (1 - beta2) * gradient**2
            root = (second[i] / (1 - beta2**step)).sqrt() + 1e-8
            expected[i] -= config.lr * (first[i] / (1 - beta1**step) / root + weight_decay * expected[i])
        optimizer.step()
    for parameter, one in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), one, rtol=1e-5, atol=1e-6)


def test_a_network_on_another_device_has_the_default_implementation():
    parameters = [torch.zeros(3, device="meta", requires_grad=True)]
    (group,) = adamw(parameters, TrainConfig(data="photos", run="run")).param_groups
    assert not group["fused"]
    (group,) = adamw([torch.zeros(3, requires_grad=True)], TrainConfig(data="photos", run="run")).param_groups
    assert group["fused"]


def test_gradients_that_overflow_in_float16_change_no_weight():
    config = TrainConfig(data="photos", run="run", precision="float16")
    network = torch.nn.Linear(3, 2)
    optimization = Optimization(network, adamw(network.parameters(), config), config, torch.device("cpu"))
    before = network.weight.detach().clone()
    for factor in (float("inf"), 1.0):
        optimization.begin(1)
        optimization.backward(network(torch.ones(1, 3)).sum() * factor)
        optimization.clip()
        optimization.step()
        assert network.weight.equal(before) == (factor != 1.0)
