"""The noise field in Triton, for the kernels of residual_shift.py.

It makes the words of `resshift_fast.diffusion.noise`. A uniform value (2k + 1)·2⁻²⁴ has 24 bits, so that its angle can
be reduced exactly: the nearest quarter turn is subtracted in integers, and polynomials of the remaining ±1/8 turn
replace `tl.cos`, whose path for huge arguments needs local memory.
"""

import triton
import triton.language as tl

# sin(π f/2)/f and (cos(π f/2) − 1)/f² in powers of f², minimax over |f| ≤ 1/2: within 5e-9 and 6e-11 before rounding.
SIN_0, SIN_1, SIN_2, SIN_3 = map(tl.constexpr, (1.5707964, -0.6459635, 0.07968023, -0.004602177))
COS_1, COS_2, COS_3, COS_4 = map(tl.constexpr, (-1.2337005, 0.25366923, -0.020860288, 0.00090402167))


@triton.jit
def noise_words(
    p_seed,  # [B], int64
    p_origin,  # [B, 2], int64 (row, column), or None
    step,
    i_image,
    i_first_pixel,
    i_first_group,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """The four Philox words of BLOCK_P pixels × BLOCK_G groups of channels, uint32."""
    # One 64-bit division a program: within the block, columns are counted from the first pixel's.
    row = i_first_pixel // width
    b_column = (i_first_pixel - row * width).to(tl.int32) + tl.arange(0, BLOCK_P)
    b_row_in_block = b_column // width
    b_column = (b_column - b_row_in_block * width).to(tl.uint32)
    b_row = row.to(tl.uint32) + b_row_in_block.to(tl.uint32)
    if p_origin is not None:
        b_row += tl.load(p_origin + 2 * i_image).to(tl.uint32)
        b_column += tl.load(p_origin + 2 * i_image + 1).to(tl.uint32)
    b_group = (i_first_group + tl.arange(0, BLOCK_G)).to(tl.uint32)
    return tl.philox(tl.load(p_seed + i_image), b_column[:, None], b_row[:, None], b_group[None, :], step)


@triton.jit
def box_muller(b_radius_word, b_angle_word):
    """Two standard normals from two words, within 1e-6 of exact."""
    # ((r >> 9) + 1/2) 2⁻²³ = ((r >> 8) | 1) 2⁻²⁴
    b_uniform = ((b_radius_word >> 8) | 1).to(tl.float32) * 5.9604644775390625e-08
    b_radius = tl.sqrt_rn(-2.0 * tl.log(b_uniform))
    b_turn = ((b_angle_word >> 8) | 1).to(tl.int32)  # in units of 2⁻²⁴ turns
    b_quarter = (b_turn + (1 << 21)) >> 22
    b_f = (b_turn - (b_quarter << 22)).to(tl.float32) * 2.384185791015625e-07  # quarter turns, in ±1/2
    b_f2 = b_f * b_f
    b_sin = b_f * (SIN_0 + b_f2 * (SIN_1 + b_f2 * (SIN_2 + b_f2 * SIN_3)))
    b_cos = 1.0 + b_f2 * (COS_1 + b_f2 * (COS_2 + b_f2 * (COS_3 + b_f2 * COS_4)))
    b_odd = (b_quarter & 1) == 1
    b_cosine = tl.where(b_odd, b_sin, b_cos)
    b_sine = tl.where(b_odd, b_cos, b_sin)
    b_cosine = tl.where(((b_quarter + 1) & 2) == 2, -b_cosine, b_cosine)
    b_sine = tl.where((b_quarter & 2) == 2, -b_sine, b_sine)
    return b_radius * b_cosine, b_radius * b_sine


@triton.jit
def noise_tile(
    p_seed,  # [B], int64
    p_origin,  # [B, 2], int64, or None
    step,
    i_image,
    i_first_pixel,
    i_first_group,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """The noise field of BLOCK_P pixels × 4·BLOCK_G channels, float32."""
    b_r0, b_r1, b_r2, b_r3 = noise_words(
        p_seed, p_origin, step, i_image, i_first_pixel, i_first_group, width, BLOCK_P, BLOCK_G
    )
    b_z0, b_z1 = box_muller(b_r0, b_r1)
    b_z2, b_z3 = box_muller(b_r2, b_r3)
    # Element (k, l) of the last two axes is z_{2k+l}: flattened, the channels are in order.
    return tl.reshape(tl.join(tl.join(b_z0, b_z2), tl.join(b_z1, b_z3)), (BLOCK_P, 4 * BLOCK_G))
