"""The selective scan on a GPU: Triton kernels over K directions at once, states and arithmetic in float32.

Shapes: K directions, B batch, L tokens, E inner width (channels), N state size.

A program owns one direction of one clip and a block of channels, one channel a thread. It walks the tokens, in the
order that its direction visits them, a chunk of `CHUNK` at a time. The rows of a chunk (the step sizes of its tokens,
say) are tuples of registers, so that the recurrence runs within a thread: `tl.associative_scan` would shuffle even
there. The loop over the states is inside the one over the chunks; so registers do not grow with N, and a state waits
for the next chunk in global memory. Forward keeps, for the backward pass, the states at the start of every chunk: as
much memory as a float32 `u` when N equals CHUNK. Backward takes the chunks from the last to the first and replays each
from its saved states.

Nothing is atomic: sums over programs are partial results added in a fixed order, so results are bitwise repeatable.

To change it: warps and registers may be tuned, by benchmarks/triton_compile.py. `CHUNK` stays half of a warp's lanes,
which the sums over channels count on. The test is tests/ops/test_triton.py, which interprets the kernels on a CPU, and
where there is a GPU runs them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from ssamba.ops.scan.gradients import Gradients

CHUNK = 16
# From the counts of benchmarks/triton_compile.py. Backward holds six values for each token of a chunk and so fills the
# registers, 8 warps an SM; the warps of a program add up their dB and dC, so 4 of them write a quarter of the partial
# sums. Forward has nothing to add up, and does with 80 registers, the fewest without spills: 24 warps an SM.
_WARPS_FORWARD = 1
_REGISTERS_FORWARD = 80
_WARPS_BACKWARD = 4
_LIMIT = {} if torch.version.hip else {"maxnreg": _REGISTERS_FORWARD}  # an option for NVIDIA's GPUs alone
_T = tl.constexpr(CHUNK)
_LANES = tl.constexpr(32)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(values):
    """log(1 + exp(x)) as max(x, 0) + 2 artanh(w / (2 + w)), w = exp(-|x|): log(1 + w) would lose a small w."""
    results = ()
    for i in tl.static_range(_T):
        w = tl.exp2(-tl.abs(values[i]) * _LOG2E)
        s = w / (2.0 + w)
        q = s * s  # at most 1/9, so the first term left out is below 2e-8
        series = 1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13)))
        series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * series))
        results = results + (tl.maximum(values[i], 0.0) + 2.0 * s * series,)
    return results


@triton.jit
def _place(batch, blocks):
    """(direction, clip, block of channels) of this program; the blocks of a clip are neighbours and share B and C."""
    program = tl.program_id(0)
    rest = program // blocks
    return (rest // batch).to(tl.int64), (rest % batch).to(tl.int64), program % blocks


@triton.jit
def _route(k, reverse, length):
    """(first, step): the token visited as number v is first + step * v."""
    backwards = (k == 1) != (reverse != 0)
    return tl.where(backwards, length - 1, 0).to(tl.int64), tl.where(backwards, -1, 1).to(tl.int64)


@triton.jit
def _pack(
    b,
    c,
    bc,
    b_k,
    b_b,
    b_l,
    b_n,
    c_k,
    c_b,
    c_l,
    c_n,
    batch,
    length,
    chunks,
    reverse,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """B and C as float32 pairs, (K, B, chunks, N, CHUNK) in visited order and zero past the end.

    A thread needs both, for every token of a chunk: of this layout it reads 8 bytes at a constant offset each time.
    """
    k, clip, chunk = _place(batch, chunks)
    first, step = _route(k, reverse, length)
    row = tl.arange(0, _T)[None, :]
    n = tl.arange(0, ROWS)[:, None]
    visited = chunk * _T + row
    t = first + step * visited
    live = (n < STATES) & (visited < length)
    low = tl.load(b + k * b_k + clip * b_b + t * b_l + n * b_n, mask=live, other=0.0).to(tl.float32)
    high = tl.load(c + k * c_k + clip * c_b + t * c_l + n * c_n, mask=live, other=0.0).to(tl.float32)
    low = low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    high = high.to(tl.int32, bitcast=True).to(tl.int64) << 32
    start = ((k * batch + clip) * chunks + chunk) * STATES
    tl.store(bc + (start + n) * _T + row, low | high, mask=n < STATES)


@triton.jit
def _unpack(
    partial,
    db,
    dc,
    batch,
    length,
    chunks,
    reverse,
    between,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Sums what each block of channels gave to dB and dC, (blocks, K, B, chunks, N, CHUNK, 2) in visited order."""
    k, clip, chunk = _place(batch, chunks)
    first, step = _route(k, reverse, length)
    column = tl.arange(0, 2 * _T)[None, :]
    n = tl.arange(0, ROWS)[:, None]
    visited = chunk * _T + column // 2
    live = (n < STATES) & (visited < length)
    start = ((k * batch + clip) * chunks + chunk) * STATES
    source = partial + (start + n) * (2 * _T) + column
    total = tl.zeros((ROWS, 2 * _T), tl.float32)
    for _ in range(BLOCKS):
        total += tl.load(source, mask=live, other=0.0)
        source += between
    target = ((k * batch + clip) * length + first + step * visited) * STATES + n
    tl.store(db + target, total, mask=live & (column % 2 == 0))
    tl.store(dc + target, total, mask=live & (column % 2 == 1))


@triton.jit
def _forward(
    u,
    delta,
    a2,
    bc,
    d,
    z,
    bias,
    out,
    carried,
    u_k,
    u_b,
    u_l,
    u_e,
    delta_k,
    delta_b,
    delta_l,
    delta_e,
    d_k,
    d_e,
    z_b,
    z_l,
    z_e,
    bias_k,
    bias_e,
    batch,
    length,
    width,
    chunks,
    blocks,
    kept,
    between,
    reverse,
    STATES: tl.constexpr,
    WARPS: tl.constexpr,
):
    """out (K, B, L, E), gated if z is given. `carried` holds `kept` sets of states a clip, `between` apart or at 0."""
    k, clip, block = _place(batch, blocks)
    first, step = _route(k, reverse, length)
    e = (block * WARPS + tl.arange(0, WARPS)[:, None]) * _LANES + tl.arange(0, _LANES)[None, :]
    inside = e < width
    index = k * batch + clip
    u += k * u_k + clip * u_b + first * u_l + e * u_e
    delta += k * delta_k + clip * delta_b + first * delta_l + e * delta_e
    a2 += k * STATES * width + e
    bc += index * chunks * STATES * _T
    out += (index * length + first) * width + e
    carried += index * kept * STATES * width + e
    zero = tl.zeros((WARPS, _LANES), tl.float32)
    skip = zero
    offset = zero
    if d is not None:
        skip = tl.load(d + k * d_k + e * d_e, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        offset = tl.load(bias + k * bias_k + e * bias_e, mask=inside, other=0.0).to(tl.float32)
    if z is not None:
        z += clip * z_b + first * z_l + e * z_e
    visited = 0
    while visited < length:
        values = ()
        raws = ()
        for i in tl.static_range(_T):
            live = inside & (visited + i < length)
            value = tl.load(u, mask=live, other=0.0).to(tl.float32)
            # Past the end, softplus(-inf) = 0 leaves every state as it is.
            raw = tl.load(delta, mask=live, other=float("-inf")).to(tl.float32)
            u += step * u_l
            delta += step * delta_l
            values = values + (value,)
            raws = raws + (raw + offset,)
        steps = _softplus(raws)
        drives = ()
        y = ()
        for i in tl.static_range(_T):
            drives = drives + (steps[i] * values[i],)
            y = y + (skip * values[i],)
        here = carried
        rate = tl.load(a2, mask=inside, other=0.0)
        h = tl.load(here, mask=inside & (visited > 0), other=0.0)
        for n in range(STATES):
            # The next state's values are on their way while this one is computed.
            more = inside & (n + 1 < STATES)
            next_rate = tl.load(a2 + (n + 1) * width, mask=more, other=0.0)
            next_h = tl.load(here + width, mask=more & (visited > 0), other=0.0)
            tl.store(here, h, mask=inside & (visited == 0))
            sums = ()
            for i in tl.static_range(_T):
                pair = tl.load(bc + i)
                h = tl.exp2(steps[i] * rate) * h + drives[i] * pair.to(tl.int32).to(tl.float32, bitcast=True)
                sums = sums + (y[i] + h * (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
            y = sums
            tl.store(here + between, h, mask=inside & (visited + _T < length))
            here += width
            bc += _T
            rate = next_rate
            h = next_h
        carried += between
        # Known by its own number whether a token is past the end: the masks from above would stay in registers.
        t = first + step * visited
        for i in tl.static_range(_T):
            live = inside & (t >= 0) & (t < length)
            t += step
            result = y[i]
            if z is not None:
                gate = tl.load(z, mask=live, other=0.0).to(tl.float32)
                z += step * z_l
                result = result * gate / (1.0 + tl.exp2(-_LOG2E * gate))
            tl.store(out, result, mask=live)
            out += step * width
        # A thread reads the states that it wrote, one channel each; the barrier makes that hold for any layout.
        tl.debug_barrier()
        visited += _T


@triton.jit
def _fold(values, lane):
    """The sums over the 32 lanes of 2 * CHUNK = 32 values: lane j of the result has that of values[j].

    At each step a lane keeps one of two values and gives the other to a partner that keeps that one: 31 shuffles, where
    32 sums one by one would take 160.
    """
    for level in tl.static_range(5):
        up = (lane >> level) % 2 == 1
        partner = lane ^ (1 << level)
        half = ()
        for i in tl.static_range(16 >> level):
            low = values[2 * i]
            high = values[2 * i + 1]
            half = half + (tl.where(up, high, low) + tl.gather(tl.where(up, low, high), partner, 1),)
        values = half
    return values[0]


@triton.jit
def _backward(
    dout,
    u,
    delta,
    a2,
    bc,
    d,
    z,
    bias,
    saved,
    du,
    ddelta,
    partial,
    sums,
    through,
    y_or_dz,
    dout_b,
    dout_l,
    dout_e,
    u_k,
    u_b,
    u_l,
    u_e,
    delta_k,
    delta_b,
    delta_l,
    delta_e,
    d_k,
    d_e,
    z_b,
    z_l,
    z_e,
    bias_k,
    bias_e,
    directions,
    batch,
    length,
    width,
    chunks,
    blocks,
    reverse,
    STATES: tl.constexpr,
    WARPS: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """du and ddelta; into `partial` what this block of channels gives to dB and dC, into `sums` (K, B, N + 2, E) what
    this clip gives to dA, dD and dbias; into `y_or_dz` dz when SINGLE (K = 1), else y before the gate, (K, B, L, E).

    `through` (K, B, N, E) holds dL/dh, times the decay, from one chunk to the one before.
    """
    k, clip, block = _place(batch, blocks)
    first, step = _route(k, reverse, length)
    lane = tl.broadcast_to(tl.arange(0, _LANES)[None, :], (WARPS, _LANES))
    column = tl.arange(0, 2 * _T)
    e = (block * WARPS + tl.arange(0, WARPS)[:, None]) * _LANES + tl.arange(0, _LANES)[None, :]
    inside = e < width
    index = k * batch + clip
    # Every pointer walks with the tokens: computed anew for each row, the addresses of a chunk fill the registers.
    visited = (chunks - 1) * _T
    start = first + step * visited
    u += k * u_k + clip * u_b + start * u_l + e * u_e
    delta += k * delta_k + clip * delta_b + start * delta_l + e * delta_e
    dout += clip * dout_b + start * dout_l + e * dout_e
    a2 += k * STATES * width + e
    bc += (index + 1) * chunks * STATES * _T - STATES * _T
    saved += (index * chunks + chunks - 1) * STATES * width + e
    sums += index * (STATES + 2) * width + e
    through += index * STATES * width + e
    partial += ((block * directions * batch + index + 1) * chunks - 1) * STATES * (2 * _T) + column
    last = (index * length + start + step * (_T - 1)) * width + e
    du += last
    ddelta += last
    zero = tl.zeros((WARPS, _LANES), tl.float32)
    skip = zero
    offset = zero
    if d is not None:
        skip = tl.load(d + k * d_k + e * d_e, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        offset = tl.load(bias + k * bias_k + e * bias_e, mask=inside, other=0.0).to(tl.float32)
    if z is not None:
        z += clip * z_b + start * z_l + e * z_e
        y_or_dz += last
    dskip = zero
    doffset = zero
    while visited >= 0:
        values = ()
        raws = ()
        dy = ()
        for i in tl.static_range(_T):
            live = inside & (visited + i < length)
            value = tl.load(u, mask=live, other=0.0).to(tl.float32)
            raw = tl.load(delta, mask=live, other=float("-inf")).to(tl.float32)
            grad = tl.load(dout, mask=live, other=0.0).to(tl.float32)
            u += step * u_l
            delta += step * delta_l
            dout += step * dout_l
            if z is not None:
                gate = tl.load(z, mask=live, other=0.0).to(tl.float32)
                z += step * z_l
                grad = grad * gate / (1.0 + tl.exp2(-_LOG2E * gate))
            values = values + (value,)
            raws = raws + (raw + offset,)
            dy = dy + (grad,)
            dskip += grad * value
        steps = _softplus(raws)
        drives = ()
        y = ()
        from_input = ()
        from_decay = ()
        for i in tl.static_range(_T):
            drives = drives + (steps[i] * values[i],)
            y = y + (skip * values[i],)
            from_input = from_input + (zero,)
            from_decay = from_decay + (zero,)
        # At the chunk that is visited last nothing comes through from a later one.
        later = inside & (visited + _T < length)
        here = through
        total = sums
        rate = tl.load(a2, mask=inside, other=0.0)
        h = tl.load(saved, mask=inside, other=0.0)
        g = tl.load(here, mask=later, other=0.0)
        drate = tl.load(total, mask=later, other=0.0)
        for n in range(STATES):
            # The next state's values are on their way while this one is computed.
            more = n + 1 < STATES
            next_rate = tl.load(a2 + (n + 1) * width, mask=inside & more, other=0.0)
            next_h = tl.load(saved + (n + 1) * width, mask=inside & more, other=0.0)
            next_g = tl.load(here + width, mask=later & more, other=0.0)
            next_drate = tl.load(total + width, mask=later & more, other=0.0)
            trail = (h,)
            decays = ()
            sum_y = ()
            for i in tl.static_range(_T):
                pair = tl.load(bc + i)
                decay = tl.exp2(steps[i] * rate)
                h = decay * h + drives[i] * pair.to(tl.int32).to(tl.float32, bitcast=True)
                decays = decays + (decay,)
                trail = trail + (h,)
                if z is not None:
                    sum_y = sum_y + (y[i] + h * (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
            if z is not None:
                y = sum_y
            dbc = ()
            sum_input = ()
            sum_decay = ()
            for i in tl.static_range(_T - 1, -1, -1):
                pair = tl.load(bc + i)
                g += dy[i] * (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
                dbc = (g * drives[i], dy[i] * trail[i + 1]) + dbc
                sum_input = (from_input[i] + g * pair.to(tl.int32).to(tl.float32, bitcast=True),) + sum_input
                g *= decays[i]
                from_before = g * trail[i]
                sum_decay = (from_decay[i] + from_before * rate,) + sum_decay
                drate += from_before * steps[i]
            from_input = sum_input
            from_decay = sum_decay
            tl.store(here, g, mask=inside)
            tl.store(total, drate, mask=inside)
            tl.store(partial + n * (2 * _T), tl.sum(_fold(dbc, lane), 0))
            here += width
            total += width
            bc += _T
            rate = next_rate
            h = next_h
            g = next_g
            drate = next_drate
        # Known by its own number whether a token is past the end: the masks from above would stay in registers.
        t = first + step * (visited + _T - 1)
        for i in tl.static_range(_T - 1, -1, -1):
            live = inside & (t >= 0) & (t < length)
            t -= step
            u -= step * u_l
            delta -= step * delta_l
            dout -= step * dout_l
            value = tl.load(u, mask=live, other=0.0).to(tl.float32)
            raw = tl.load(delta, mask=live, other=float("-inf")).to(tl.float32)
            # The slope of softplus, again 0 past the end.
            change = (from_input[i] * value + from_decay[i] * _LN2) / (1.0 + tl.exp2(-_LOG2E * (raw + offset)))
            doffset += change
            tl.store(du, from_input[i] * steps[i] + dy[i] * skip, mask=live)
            tl.store(ddelta, change, mask=live)
            du -= step * width
            ddelta -= step * width
            if z is not None:
                z -= step * z_l
                result = y[i]
                if SINGLE:
                    grad = tl.load(dout, mask=live, other=0.0).to(tl.float32)
                    gate = tl.load(z, mask=live, other=0.0).to(tl.float32)
                    sigma = 1.0 / (1.0 + tl.exp2(-_LOG2E * gate))
                    result = result * grad * sigma * (1.0 + gate * (1.0 - sigma))
                tl.store(y_or_dz, result, mask=live)
                y_or_dz -= step * width
        u -= step * _T * u_l
        delta -= step * _T * delta_l
        dout -= step * _T * dout_l
        if z is not None:
            z -= step * _T * z_l
        bc -= 2 * STATES * _T
        saved -= STATES * width
        partial -= STATES * (2 * _T)
        visited -= _T
        # A thread reads what it wrote, one channel each; the barrier makes that hold for any layout.
        tl.debug_barrier()
    tl.store(sums + STATES * width, dskip, mask=inside)
    tl.store(sums + (STATES + 1) * width, doffset, mask=inside)


@triton.jit
def _merge(
    y,
    z,
    dout,
    out,
    z_b,
    z_l,
    z_e,
    dout_b,
    dout_l,
    dout_e,
    tokens,
    length,
    width,
    BLOCK: tl.constexpr,
):
    """out = (y[0] + y[1]) * silu(z), (B, L, E); or, given dout, the gradient of z."""
    token = tl.program_id(0).to(tl.int64)
    clip = token // length
    t = token % length
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < width
    y += token * width
    total = tl.load(y + e, mask=inside, other=0.0) + tl.load(y + tokens * width + e, mask=inside, other=0.0)
    if z is not None:
        gate = tl.load(z + clip * z_b + t * z_l + e * z_e, mask=inside, other=0.0).to(tl.float32)
        sigma = 1.0 / (1.0 + tl.exp2(-_LOG2E * gate))
        if dout is None:
            total *= gate * sigma
        else:
            grad = tl.load(dout + clip * dout_b + t * dout_l + e * dout_e, mask=inside, other=0.0).to(tl.float32)
            total *= grad * sigma * (1.0 + gate * (1.0 - sigma))
    tl.store(out + token * width + e, total, mask=inside)


def usable(device_type: str) -> bool:
    """Whether the kernels run on this kind of device: on a GPU, or on a CPU by Triton's interpreter."""
    if device_type == "cpu":
        return isinstance(_forward, InterpretedFunction)
    return device_type == "cuda" and torch.cuda.is_available()


def saved_shape(u: Tensor, a: Tensor) -> tuple[int, ...]:
    """(K, B, chunks, N, E), what `forward` keeps for u (K, B, L, E) and a (K, E, N)."""
    directions, batch, length, width = u.shape
    return directions, batch, -(-length // CHUNK), a.shape[2], width


def _strides(tensor: Tensor | None, count: int) -> tuple[int, ...]:
    return (0,) * count if tensor is None else tensor.stride()


def _prepare(a: Tensor, b: Tensor, c: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """A times log2(e) as (K, N, E), and B and C packed: small beside u."""
    directions, batch, length, states = b.shape
    chunks = -(-length // CHUNK)
    rates = a.detach().transpose(1, 2).float().contiguous() * _LOG2E.value
    packed = torch.empty(directions, batch, chunks, states, CHUNK, dtype=torch.int64, device=b.device)
    _pack[(directions * batch * chunks,)](
        b,
        c,
        packed,
        *b.stride(),
        *c.stride(),
        batch,
        length,
        chunks,
        int(reverse),
        STATES=states,
        ROWS=triton.next_power_of_2(states),
        num_warps=1,
    )
    return rates, packed


def _combine(y: Tensor, z: Tensor | None, dout: Tensor | None, out: Tensor) -> None:
    batch, length, width = out.shape
    block = min(1024, triton.next_power_of_2(width))
    _merge[(batch * length, triton.cdiv(width, block))](
        y,
        z,
        dout,
        out,
        *_strides(z, 3),
        *_strides(dout, 3),
        batch * length,
        length,
        width,
        BLOCK=block,
        num_warps=4,
    )


def forward(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The scan of `ssamba.ops.bidirectional_scan` (K = 2) or `selective_scan` (K = 1), and what `backward` needs.

    Args:
        u, delta: (K, B, L, E), any floating dtype and strides; so are the next ones. a: (K, E, N). b, c: (K, B, L, N).
        d, bias: (K, E) or None. z: (B, L, E) or None.
        reverse: direction k visits the tokens from the last to the first where (k == 1) != reverse.
        keep: whether a backward pass follows.

    Returns:
        y, (B, L, E), in u's dtype; the float32 states at the start of every chunk, `saved_shape`, empty without `keep`.
    """
    directions, batch, length, width = u.shape
    shape = saved_shape(u, a)
    y = torch.empty(batch, length, width, dtype=u.dtype, device=u.device)
    carried = u.new_empty(shape if keep else (*shape[:2], min(1, shape[2]), *shape[3:]), dtype=torch.float32)
    if u.numel():
        # Each direction has programs of its own, since small batches need every program that there is; so the outputs
        # are added and gated afterwards.
        single = directions == 1
        out = y if single else torch.empty(u.shape, dtype=torch.float32, device=u.device)
        blocks = triton.cdiv(width, 32 * _WARPS_FORWARD)
        with torch.cuda.device_of(u):
            rates, packed = _prepare(a, b, c, reverse)
            _forward[(blocks * batch * directions,)](
                u,
                delta,
                rates,
                packed,
                d,
                z if single else None,
                bias,
                out,
                carried,
                *u.stride(),
                *delta.stride(),
                *_strides(d, 2),
                *_strides(z, 3),
                *_strides(bias, 2),
                batch,
                length,
                width,
                shape[2],
                blocks,
                carried.shape[2],
                a.shape[2] * width if keep else 0,
                int(reverse),
                STATES=a.shape[2],
                WARPS=_WARPS_FORWARD,
                num_warps=_WARPS_FORWARD,
                **_LIMIT,
            )
            if not single:
                _combine(out, z, None, y)
    return y, carried if keep else carried.new_empty(0)


def backward(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    reverse: bool,
) -> Gradients:
    """The gradients of `forward`'s inputs, each contiguous."""
    directions, batch, length, width = u.shape
    states = a.shape[2]
    chunks = -(-length // CHUNK)
    du, ddelta, db, dc = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta, b, c))
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    if not u.numel():
        da = a.new_zeros(a.shape)
        dd, dbias = (None if x is None else x.new_zeros(x.shape) for x in (d, bias))
        return Gradients(du, ddelta, da, db.zero_(), dc.zero_(), dd, dz, dbias)
    warps = min(_WARPS_BACKWARD, triton.next_power_of_2(triton.cdiv(width, 32)))
    blocks = triton.cdiv(width, 32 * warps)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    sums = scratch(directions, batch, states + 2, width)
    partial = scratch(blocks, directions, batch, chunks, states, 2 * CHUNK)
    single = directions == 1
    y_or_dz = scratch(*u.shape) if z is not None and not single else dz
    with torch.cuda.device_of(u):
        rates, packed = _prepare(a, b, c, reverse)
        _backward[(blocks * batch * directions,)](
            dout,
            u,
            delta,
            rates,
            packed,
            d,
            z,
            bias,
            saved,
            du,
            ddelta,
            partial,
            sums,
            scratch(directions, batch, states, width),
            y_or_dz,
            *dout.stride(),
            *u.stride(),
            *delta.stride(),
            *_strides(d, 2),
            *_strides(z, 3),
            *_strides(bias, 2),
            directions,
            batch,
            length,
            width,
            chunks,
            blocks,
            int(reverse),
            STATES=states,
            WARPS=warps,
            SINGLE=single,
            num_warps=warps,
        )
        _unpack[(directions * batch * chunks,)](
            partial,
            db,
            dc,
            batch,
            length,
            chunks,
            int(reverse),
            partial.stride(0),
            STATES=states,
            ROWS=triton.next_power_of_2(states),
            BLOCKS=blocks,
            num_warps=1,
        )
        if z is not None and dz is not None and y_or_dz is not None and not single:
            _combine(y_or_dz, z, dout, dz)
    total = sums.sum(1)
    return Gradients(
        du,
        ddelta,
        total[:, :states].transpose(1, 2).to(a.dtype).contiguous(),
        db,
        dc,
        None if d is None else total[:, states].to(d.dtype).contiguous(),
        dz,
        None if bias is None else total[:, states + 1].to(bias.dtype).contiguous(),
    )
