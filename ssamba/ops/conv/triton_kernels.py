"""The causal depthwise convolution and its SiLU on a GPU: Triton kernels over K directions at once, channels last.

Shapes: K directions, B batch, L tokens, E channels, W kernel.

Direction k visits the tokens from the last to the first where (k == 1) != reverse. Nothing is atomic: sums over
programs are partial results added in a fixed order, so results are bitwise repeatable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile is 8 values a thread forward, and 4 backward, where for each of two directions the sums of the bias and of 4
# taps stay in registers. One program sums these gradients over the tokens of a segment.
TOKENS = 8
CHANNELS = 128
SEGMENT = 64
WARPS_FORWARD = 4
WARPS_BACKWARD = 8


@triton.jit
def _taps(weight, k, e, inside, weight_k, weight_e, weight_w, WIDTH: tl.constexpr):
    taps = ()
    for w in tl.static_range(WIDTH):
        at = weight + k * weight_k + e * weight_e + w * weight_w
        taps = taps + (tl.load(at, mask=inside, other=0.0).to(tl.float32)[None, :],)
    return taps


@triton.jit
def _forward(
    x,
    weight,
    bias,
    out,
    x_b,
    x_l,
    x_e,
    weight_k,
    weight_e,
    weight_w,
    bias_k,
    bias_e,
    batch,
    length,
    channels,
    tiles,
    blocks,
    reverse,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    program = tl.program_id(0)
    tile = program // blocks % tiles
    rest = program // blocks // tiles
    k = (rest // batch).to(tl.int64)
    clip = (rest % batch).to(tl.int64)
    e = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    t = tile * TOKENS + tl.arange(0, TOKENS)[:, None]
    step = tl.where((k == 1) != (reverse != 0), -1, 1)
    inside = e < channels
    taps = _taps(weight, k, e, inside, weight_k, weight_e, weight_w, WIDTH)
    y = tl.load(bias + k * bias_k + e * bias_e, mask=inside, other=0.0).to(tl.float32)[None, :]
    y = tl.broadcast_to(y, (TOKENS, CHANNELS))
    x += clip * x_b + e[None, :] * x_e
    for w in tl.static_range(WIDTH):
        source = t - step * (WIDTH - 1 - w)
        live = inside[None, :] & (source >= 0) & (source < length)
        y += taps[w] * tl.load(x + source.to(tl.int64) * x_l, mask=live, other=0.0).to(tl.float32)
    target = ((k * batch + clip) * length + t) * channels + e[None, :]
    tl.store(out + target, y * tl.sigmoid(y), mask=inside[None, :] & (t < length))


@triton.jit
def _backward(
    dout,
    x,
    weight,
    bias,
    dx,
    partial,
    dout_k,
    dout_b,
    dout_l,
    dout_e,
    x_b,
    x_l,
    x_e,
    weight_k,
    weight_e,
    weight_w,
    bias_k,
    bias_e,
    length,
    channels,
    segments,
    blocks,
    FIRST: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEGMENT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx, and into `partial` (clips and segments, K, W + 1, E) what a segment gives to the weights and the bias.

    The output before SiLU is computed again for each of the W tokens that an input reaches. The inputs for that overlap
    and are the same for both directions, of which k steps by FIRST * (1 - 2 * k); the compiler finds the 2 W - 1 loads
    of a tile among them, for offsets are constants and no store is between.
    """
    program = tl.program_id(0)
    segment = program // blocks % segments
    clip = (program // blocks // segments).to(tl.int64)
    e = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = e < channels
    x += clip * x_b + e[None, :] * x_e
    dout += clip * dout_b + e[None, :] * dout_e
    dx += clip * length * channels + e[None, :]
    taps = ()
    biases = ()
    sums = ()
    for k in tl.static_range(DIRECTIONS):
        taps = taps + (_taps(weight, k, e, inside, weight_k, weight_e, weight_w, WIDTH),)
        biases = biases + (tl.load(bias + k * bias_k + e * bias_e, mask=inside, other=0.0).to(tl.float32)[None, :],)
        for _ in tl.static_range(WIDTH + 1):
            sums = sums + (tl.zeros((TOKENS, CHANNELS), tl.float32),)
    for tile in range(SEGMENT // TOKENS):
        t = segment * SEGMENT + tile * TOKENS + tl.arange(0, TOKENS)[:, None]
        dsource = tl.zeros((TOKENS, CHANNELS), tl.float32)
        more = ()
        for k in tl.static_range(DIRECTIONS):
            for s in tl.static_range(WIDTH - 1, -1, -1):
                y = biases[k]
                for w in tl.static_range(WIDTH):
                    source = t + FIRST * (1 - 2 * k) * (s - WIDTH + 1 + w)
                    live = inside[None, :] & (source >= 0) & (source < length)
                    value = tl.load(x + source.to(tl.int64) * x_l, mask=live, other=0.0).to(tl.float32)
                    y = y + taps[k][w] * value
                target = t + FIRST * (1 - 2 * k) * s
                live = inside[None, :] & (target >= 0) & (target < length)
                grad = tl.load(dout + k * dout_k + target.to(tl.int64) * dout_l, mask=live, other=0.0).to(tl.float32)
                sigma = tl.sigmoid(y)
                dy = grad * sigma * (1.0 + y * (1.0 - sigma))
                dsource += taps[k][WIDTH - 1 - s] * dy
                if s == 0:
                    for w in tl.static_range(WIDTH):
                        source = t + FIRST * (1 - 2 * k) * (w - WIDTH + 1)
                        live = inside[None, :] & (source >= 0) & (source < length)
                        value = tl.load(x + source.to(tl.int64) * x_l, mask=live, other=0.0).to(tl.float32)
                        more = more + (sums[k * (WIDTH + 1) + w] + dy * value,)
                    more = more + (sums[k * (WIDTH + 1) + WIDTH] + dy,)
        sums = more
        tl.store(dx + t.to(tl.int64) * channels, dsource, mask=inside[None, :] & (t < length))
    partial += (clip * segments + segment) * DIRECTIONS * (WIDTH + 1) * channels + e
    for row in tl.static_range(DIRECTIONS * (WIDTH + 1)):
        tl.store(partial + row * channels, tl.sum(sums[row], 0), mask=inside)


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """silu(depthwise convolution) in each direction, (K, B, L, E), in x's dtype.

    Args:
        x: (B, L, E), any floating dtype and strides; so are the next ones.
        weight: (K, E, W), its last column meets the token itself, the others those visited before. bias: (K, E).
        reverse: direction k visits the tokens from the last to the first where (k == 1) != reverse.
    """
    batch, length, channels = x.shape
    directions = len(weight)
    out = torch.empty(directions, batch, length, channels, dtype=x.dtype, device=x.device)
    if out.numel():
        tiles, blocks = triton.cdiv(length, TOKENS), triton.cdiv(channels, CHANNELS)
        with torch.cuda.device_of(x):
            _forward[(directions * batch * tiles * blocks,)](
                x,
                weight,
                bias,
                out,
                *x.stride(),
                *weight.stride(),
                *bias.stride(),
                batch,
                length,
                channels,
                tiles,
                blocks,
                int(reverse),
                WIDTH=weight.shape[2],
                TOKENS=TOKENS,
                CHANNELS=CHANNELS,
                num_warps=WARPS_FORWARD,
            )
    return out


def backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias from that of the output, (K, B, L, E), in their dtypes."""
    batch, length, channels = x.shape
    directions, _, taps = weight.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    segments, blocks = triton.cdiv(length, SEGMENT), triton.cdiv(channels, CHANNELS)
    partial = torch.empty(batch * segments, directions, taps + 1, channels, dtype=torch.float32, device=x.device)
    if dx.numel():
        with torch.cuda.device_of(x):
            _backward[(batch * segments * blocks,)](
                dout,
                x,
                weight,
                bias,
                dx,
                partial,
                *dout.stride(),
                *x.stride(),
                *weight.stride(),
                *bias.stride(),
                length,
                channels,
                segments,
                blocks,
                FIRST=-1 if reverse else 1,
                DIRECTIONS=directions,
                WIDTH=taps,
                SEGMENT=SEGMENT,
                TOKENS=TOKENS,
                CHANNELS=CHANNELS,
                num_warps=WARPS_BACKWARD,
            )
    total = partial.sum(0)
    dweight = total[:, :taps].transpose(1, 2).to(weight.dtype).contiguous()
    return dx, dweight, total[:, taps].to(bias.dtype).contiguous()
