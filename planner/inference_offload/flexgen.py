"""FlexGen's cost model of offloaded inference, as published: its formulas and its hardware constants.

Sheng et al., "FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU", arXiv
2303.06865, section 4.3 and appendix A.3; the terms of peak memory, the constants and where the published programme
differs from the paper (sums of chains that share a link, memory taken to 0.8) are those of `experimental/cost_model.py`
in the repository FMInference/FlexLLMGen. They hold for models like OPT on a Google Cloud T4, and are here so that plans
can be compared under one price; shardwright's own is `planner.inference_offload.prices`.

Words: s prompt tokens, n generated tokens, l layers, h1 hidden size, h2 feed-forward size, nh heads; a block of bls
sequences in batches of gbs. w, c and h are the weights, the cache of keys and values and the activations; g, c and n
behind them are the GPU, the CPU's memory and the drive. Activations are never on the drive, as in FlexGen's runtime.
A layer's weights are 8 h1^2 + 4 h1 h2 bytes in 16 bit.

Time of one layer (section 4.3): prompts max(up + read, down + written, GPU); answers up + max(down, read, written,
GPU + CPU), of which attention over a cache that is not on the GPU is the CPU's.
"""

import math
from dataclasses import dataclass

from solvers.shares.problem import Chain, Room, SharesProblem

GB = 1 << 30
TERA = 1e12

OPTIONS = (
    "weights on the GPU",
    "weights on the host",
    "weights on the drive",
    "cache on the GPU",
    "cache on the host",
    "cache on the drive",
    "activations on the GPU",
    "activations on the host",
)
WG, WC, WN, CG, CC, CN, HG, HC = range(len(OPTIONS))
_THING_O = (0, 0, 0, 1, 1, 1, 2, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexGenModel:
    """A model like OPT.

    Args:
        num_layers: Layers.
        hidden_size: Width of the stream.
        intermediate_size: Width of the feed-forward.
        num_heads: Attention heads.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexGenHardware:
    """The constants of `CostModelConfig`, fitted on a T4 of Google Cloud; bytes and flops a second.

    Args:
        gpu_bytes: Memory of the GPU.
        host_bytes: Memory of the host.
        drive_bytes: The drive.
        memory_fraction: Part of each that the programme fills (`alpha_g`, `alpha_c`, `alpha_n`).
        up: Host to GPU.
        down_cache: GPU to host, keys and values.
        down_hidden: GPU to host, activations.
        read: Drive to host.
        write_cache_prompts: Host to drive, keys and values of prompts.
        write_answers: Host to drive while answers are generated.
        products_prompts: Linear layers of prompts.
        products_answers: Linear layers of answers.
        attention_prompts: Attention of prompts.
        attention_answers: Attention of answers.
        cpu: Attention on the CPU.
        cpu_batch_width: `c1`, of small batches and small models together.
        cpu_batch: `c2`, of batches below 64.
        cpu_width: `c3`, of models narrower than 4096.
    """

    gpu_bytes: float
    host_bytes: float
    drive_bytes: float
    memory_fraction: float = 0.8
    up: float = 12.89 * GB
    down_cache: float = 0.97 * GB
    down_hidden: float = 4.82 * GB
    read: float = 0.473 * GB
    write_cache_prompts: float = 0.746 * GB
    write_answers: float = 2.015 * GB
    products_prompts: float = 21.24 * TERA
    products_answers: float = 4.3 * TERA
    attention_prompts: float = 9.97 * TERA
    attention_answers: float = 0.079 * TERA
    cpu: float = 0.0123 * TERA
    cpu_batch_width: float = 0.0168
    cpu_batch: float = 0.0328
    cpu_width: float = 0.0621

    def cpu_rate(self, *, batch_size: int, hidden_size: int) -> float:
        """Return the flops a second of attention on the CPU, which small batches and narrow models slow down."""
        batch = max(0.0, math.log2(64 / batch_size))
        width = max(0.0, math.log2(4096 / hidden_size))
        kept = 1 + self.cpu_batch_width * batch * width - self.cpu_batch * batch - self.cpu_width * width
        return self.cpu * max(0.1, kept)


READ_WEIGHTS_FRACTION = 0.95
"""Part of the drive's rate that reading weights reaches while answers are generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexGenBlock:
    """A block of sequences of equal lengths.

    Args:
        prompt_tokens: Tokens of each prompt.
        output_tokens: Tokens generated for each.
        batch_size: Sequences of a batch.
        num_batches: Batches of the block.
    """

    prompt_tokens: int
    output_tokens: int
    batch_size: int
    num_batches: int


def flexgen_problem(model: FlexGenModel, hardware: FlexGenHardware, block: FlexGenBlock) -> SharesProblem:
    """Return the division of one block under FlexGen's formulas; its objective is the time of the block.

    Args:
        model: The model.
        hardware: The constants.
        block: The block.
    """
    work = _Work(
        model, block.prompt_tokens, block.output_tokens, block.batch_size, block.batch_size * block.num_batches
    )
    return SharesProblem(
        thing_O=_THING_O,
        units_T=(0, 0, 0),
        weight_P=(float(model.num_layers), float(model.num_layers * (block.output_tokens - 1))),
        chains=(*_prompt_chains(work, hardware), *_answer_chains(work, hardware)),
        rooms=_rooms(work, hardware),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """The words of the module's docstring."""

    model: FlexGenModel
    s: int
    n: int
    gbs: int
    bls: int

    @property
    def weights(self) -> float:
        return 8.0 * self.model.hidden_size**2 + 4.0 * self.model.hidden_size * self.model.intermediate_size

    @property
    def h1(self) -> int:
        return self.model.hidden_size

    def hidden(self, tokens: float) -> float:
        """Return the activations of so many tokens of each sequence of the block."""
        return 2.0 * tokens * self.h1 * self.bls

    def cache(self, tokens: float) -> float:
        """Return one layer's keys and values of so many tokens of each sequence of the block."""
        return 4.0 * tokens * self.h1 * self.bls

    @property
    def products(self) -> float:
        """Return the flops of a layer's linear parts for one token of each sequence."""
        return self.bls * (8.0 * self.h1**2 + 4.0 * self.h1 * self.model.intermediate_size)


def _options(**numbers: float) -> tuple[float, ...]:
    """Return the numbers of options by their short names, 0 for the others."""
    return tuple(numbers.get(name, 0.0) for name in ("wg", "wc", "wn", "cg", "cc", "cn", "hg", "hc"))


def _prompt_chains(work: _Work, hardware: FlexGenHardware) -> tuple[Chain, ...]:
    hidden, cache = work.hidden(work.s), work.cache(work.s + 1)
    up = work.weights / hardware.up
    down = cache / hardware.down_cache
    attention = 4.0 * work.bls * work.s**2 * work.h1
    gpu = work.products * work.s / hardware.products_prompts + attention / hardware.attention_prompts
    return (
        Chain(
            name="up and read",
            phase=0,
            fixed_seconds=0.0,
            seconds_O=_options(wc=up, wn=up + work.weights / hardware.read, hc=hidden / hardware.up),
        ),
        Chain(
            name="down and written",
            phase=0,
            fixed_seconds=0.0,
            seconds_O=_options(
                cc=down, cn=down + cache / hardware.write_cache_prompts, hc=hidden / hardware.down_hidden
            ),
        ),
        Chain(name="GPU", phase=0, fixed_seconds=gpu, seconds_O=_options()),
    )


def _answer_chains(work: _Work, hardware: FlexGenHardware) -> tuple[Chain, ...]:
    hidden, seen, new = work.hidden(1), work.cache(work.s + work.n / 2), work.cache(1)
    up = work.weights / hardware.up
    always = {"wc": up, "wn": up, "hc": hidden / hardware.up}
    cpu = hardware.cpu_rate(batch_size=work.gbs, hidden_size=work.h1)

    def chain(name: str, fixed: float = 0.0, **seconds: float) -> Chain:
        joined = {key: always.get(key, 0.0) + seconds.get(key, 0.0) for key in (*always, *seconds)}
        return Chain(name=name, phase=1, fixed_seconds=fixed, seconds_O=_options(**joined))

    return (
        chain("up, then down", hc=hidden / hardware.down_hidden),
        chain("up, then read", cn=seen / hardware.read, wn=work.weights / (hardware.read * READ_WEIGHTS_FRACTION)),
        chain("up, then written", cn=new / hardware.write_answers),
        chain(
            "up, then GPU and CPU",
            work.products / hardware.products_answers,
            cg=seen / hardware.attention_answers,
            cc=seen / cpu,
            cn=seen / cpu,
        ),
    )


def _rooms(work: _Work, hardware: FlexGenHardware) -> tuple[Room, ...]:
    model, gbs, h1, tokens = work.model, work.gbs, work.h1, work.s + work.n
    weights, cache = work.weights * model.num_layers, work.cache(tokens) * model.num_layers
    two_layers = 2 * work.weights
    fraction = hardware.memory_fraction

    def inner(each: int) -> float:
        """Return what one batch's products hold: projections, output, feed-forward."""
        return gbs * each * (8.0 * h1 + 4.0 * h1 + 2.0 * model.intermediate_size + 2.0 * h1)

    scores = gbs * (4.0 * work.s * h1 + 2.0 * model.num_heads * work.s**2)
    seen = gbs * (4.0 * h1 + 4.0 * tokens * h1 + 2.0 * model.num_heads * tokens)
    gpu, host = hardware.gpu_bytes * fraction, hardware.host_bytes * fraction
    return (
        Room(
            name="GPU, prompts",
            capacity=gpu,
            fixed=inner(work.s) + scores,
            use_O=_options(
                wg=weights,
                wc=two_layers,
                wn=two_layers,
                cg=cache,
                hg=work.hidden(work.s),
                hc=2.0 * work.s * h1 * gbs,
            ),
        ),
        Room(
            name="GPU, answers",
            capacity=gpu,
            fixed=inner(1),
            use_O=_options(
                wg=weights,
                wc=two_layers,
                wn=two_layers,
                cg=cache + 4.0 * gbs * tokens * h1 + seen,
                hg=work.hidden(1),
                hc=2.0 * h1 * gbs,
            ),
        ),
        Room(
            name="host, prompts",
            capacity=host,
            fixed=0.0,
            use_O=_options(
                wc=weights + work.weights,
                wn=work.weights,
                cc=work.cache(work.s) * model.num_layers,
                hc=work.hidden(work.s) + 2.0 * work.s * h1 * gbs,
            ),
        ),
        Room(
            name="host, answers",
            capacity=host,
            fixed=2.0 * model.num_heads * tokens * gbs + 2.0 * h1 * gbs,
            use_O=_options(wc=weights, wn=work.weights, cc=cache, cn=8.0 * tokens * h1 * gbs, hc=work.hidden(1)),
        ),
        Room(
            name="drive",
            capacity=hardware.drive_bytes * fraction,
            fixed=0.0,
            use_O=_options(wn=weights, cn=cache),
        ),
    )
