"""Numbers of residual blocks: read from weights, and fewer of them kept from a deeper network's."""

from dataclasses import replace

import pytest
import torch

from resshift_fast.models import depth
from resshift_fast.models.catalog import get
from resshift_fast.models.sizes import SwinUNetConfig
from resshift_fast.models.swin_unet import SwinUNet

NANO = get("nano-x4").denoiser
DEEP = SwinUNetConfig(
    image_size=32,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=(3, 1, 2),
    attention_resolutions=(32, 8),
    swin_depth=1,
    swin_embed_dim=32,
    lq_size=32,
)


def weights(config, prefix=""):
    with torch.device("meta"):
        return {prefix + name: value for name, value in SwinUNet(config).state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("blocks", [(3, 1, 2), (1, 2, 1), (4, 1, 1)])
def test_weights_tell_the_blocks_of_every_level(blocks, prefix):
    config = replace(DEEP, num_res_blocks=blocks)
    assert depth.of_weights(DEEP, weights(config, prefix)) == config


def test_other_weights_tell_nothing():
    assert depth.of_weights(NANO, weights(DEEP)) is NANO
    for state in ({}, {"encoder.conv_in.weight": torch.ones(1)}, {"input_blocks.0.0.weight": torch.ones(1)}):
        assert depth.of_weights(DEEP, state) is DEEP


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 1, 2), (3, 1, 1)])
def test_what_is_kept_fits_the_shallower_network(blocks, prefix):
    config = replace(DEEP, num_res_blocks=blocks)
    kept, own = depth.without_further_blocks(config, weights(DEEP, prefix)), weights(config, prefix)
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in own.items()}


def test_both_sides_keep_their_first_blocks_and_the_decoder_its_last():
    state = {name: torch.tensor(number) for number, name in enumerate(weights(NANO))}
    kept = depth.without_further_blocks(replace(NANO, num_res_blocks=(1, 1)), state)
    stages = {
        "input_blocks": [0, 1, 3, 4],  # first convolution, block, stride-2 convolution, block
        "output_blocks": [0, 1, 2, 4],  # two blocks of the lower level, two of three of the upper
    }
    expected = {name: value for name, value in state.items() if not name.startswith(tuple(stages))}
    for side, numbers in stages.items():
        for number, given in enumerate(numbers):
            begin = f"{side}.{given}."
            found = {name.removeprefix(begin): value for name, value in state.items() if name.startswith(begin)}
            expected |= {f"{side}.{number}.{rest}": value for rest, value in found.items()}
    assert kept == expected


def test_nothing_is_left_out_for_a_deeper_network():
    state = weights(NANO)
    assert depth.without_further_blocks(replace(NANO, num_res_blocks=(2, 2)), state) == state
    assert depth.without_further_blocks(NANO, state) == state
