"""How long one attention kernel takes on any GPU: prefill and decode, ordinary and latent.

Prefill: a block of queries of one head walks over the keys that they see. Its products run at the tensor rate, and
between them every score goes through an exponential, of which a unit does few (Shah et al., FlashAttention-3, arXiv
2407.08608, section 3.1). Blocks are dealt to the compute units; the longest is a bound. Around it queries, keys and
values are brought into order and written to the cache, at memory bandwidth.

Decode: keys and values are read once, at memory bandwidth. A block takes one sequence and key head; where there are
fewer blocks than units, long sequences are split (Flash-Decoding). Small blocks take a least time each.
"""

import math

from profiles.hardware import Device
from profiles.kernel_constants import (
    ATTENTION_BLOCK_SECONDS,
    ATTENTION_BURST_FRACTION,
    ATTENTION_START,
    DECODE_MEMORY_FRACTION,
    FLOPS_PER_EXPONENTIAL,
    FLOPS_PER_EXPONENTIAL_SINCE,
    PREFILL_PASSES,
)
from profiles.kernels.operations import Decode, Prefill
from profiles.kernels.rates import copied_bytes_per_second, of_architecture, peak_flops_per_second

TILE = 128
"""Queries of a block, and keys that it takes at a time: the tiles of FlashAttention-2 and -3 at width 128."""

LEAST_ROWS = 16
"""Rows that a tensor-core product has at least: heads that share keys fill them in decode."""


def pair_seconds(device: Device, *, rate: str, widths: int) -> float:
    """Return the time of one query-key pair of one head on the whole GPU.

    Args:
        device: The GPU.
        rate: Datasheet rate of the products.
        widths: Width of a key and of a value head together.

    Raises:
        CoverageError: The GPU lacks a rate.
    """
    products = peak_flops_per_second(device, rate) * of_architecture(ATTENTION_BURST_FRACTION, device).value
    per_exponential = FLOPS_PER_EXPONENTIAL.get(device.architecture, FLOPS_PER_EXPONENTIAL_SINCE)
    return 2 * widths / products + per_exponential / peak_flops_per_second(device, "fp32")


def prefill_seconds(operation: Prefill, device: Device) -> float:
    """Return the time of causal attention over whole sequences.

    Raises:
        CoverageError: The GPU lacks a rate.
    """
    units = device.num_compute_units
    widths = operation.qk_head_dim + operation.v_head_dim
    step = pair_seconds(device, rate=operation.rate, widths=widths) * units * TILE * TILE
    tiles = math.ceil(operation.tokens / TILE)
    heads = operation.batch * operation.num_heads
    blocks = max(1.0, heads * tiles / units)
    steps = max(float(tiles), heads * tiles * (tiles + 1) / 2 / units)
    moved = PREFILL_PASSES.value * operation.tensor_bytes + operation.written_bytes
    moving = moved / copied_bytes_per_second(device)
    return ATTENTION_START.value + blocks * ATTENTION_BLOCK_SECONDS.value + steps * step + moving


def decode_seconds(operation: Decode, device: Device) -> float:
    """Return the time of attention of one new token a sequence.

    Raises:
        CoverageError: The GPU lacks a rate.
    """
    units = device.num_compute_units
    widths = operation.qk_head_dim + operation.v_head_dim
    groups = operation.batch * operation.num_kv_heads
    splits = math.ceil(operation.kv_tokens / TILE)
    # Half of the units are enough to saturate memory.
    used = min(1.0, groups * splits / units)
    reading = operation.read_bytes / (
        device.memory_bytes_per_second * DECODE_MEMORY_FRACTION.value * min(1.0, 2 * used)
    ) + operation.query_bytes / (device.memory_bytes_per_second * DECODE_MEMORY_FRACTION.value)
    rows = max(operation.num_heads, operation.num_kv_heads * LEAST_ROWS)
    pairs = operation.batch * rows * operation.kv_tokens
    computing = pairs * pair_seconds(device, rate=operation.rate, widths=widths) / used
    beginning = max(1.0, groups / units) * ATTENTION_BLOCK_SECONDS.value * widths / 256
    longer = math.hypot(reading, computing, beginning)
    return ATTENTION_START.value + longer
