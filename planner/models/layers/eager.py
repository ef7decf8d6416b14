"""What plain PyTorch modules keep for backward, and the passes that their kernels make.

The modules are those of the program that is shipped for DeepSpeed (`planner/data/deepspeed/planned_model.py`); a test
asks autograd what they keep and compares every byte. The kernels are PyTorch's own, on a GPU: norms keep their input
and fp32 statistics, attention what its kernel keeps, every other operation what autograd's formula for it reads.
Tables of rotary angles are left out: all layers of all micro-batches share them.

Passes are counted operation by operation in the units of `planner.models.layers.builder`: one pass reads or writes the
tensor once in 16 bit, so fp32 counts twice.
"""

from planner.models.blocks import Activation, DenseFeedForward, PositionEmbedding, Router
from planner.models.graph import Module, Operator, Region, Saved
from planner.models.layers.builder import COPY, Builder, Passes
from planner.requests.workload import AttentionKernel, DType

FP32_BYTES = DType.FP32.num_bytes
INDEX_BYTES = 8  # int64

RECTIFIERS = frozenset({Activation.RELU, Activation.RELU2})
"""Activations whose backward reads the output, not the input."""

ACTIVATION, ACTIVATION_KERNELS = Passes(forward=2, backward=3), 1
SQUARE, SQUARE_KERNELS = Passes(forward=2, backward=7), 3  # backward: copy, scale, multiply
GATE, GATE_KERNELS = Passes(forward=3, backward=6), 2  # backward: two products
WEIGHTING, WEIGHTING_KERNELS = Passes(forward=2, backward=6), 3  # backward: two products, a sum over each row
# Forward: to fp32 3, four products 8, two sums 6, join 4, to 16 bit 3. Backward: to fp32 3, four products 8, sign 2,
# two sums 6, join 4, to 16 bit 3, the part that is rotated put back 3.
ROTATION, ROTATION_KERNELS = Passes(forward=24, backward=29), 12

LOSS_BESIDE = "gradients and logits beside the loss"
LOSS_BESIDE_BYTES = 10
"""For each logit, beside the log-softmax and half as much again that the ledger allows for: 16 bytes in all.

Backward of the loss peaks at three fp32 tensors (log-softmax, its gradient, that of the logits), 12 bytes a logit. The
last stage of a pipeline holds the logits of two micro-batches in 16 bit beside them (`PipelineEngine`'s buffers of
outputs), 16 bytes. The loss of AutoTP peaks in its forward pass (logits in 16 bit, in fp32, less their maximum, their
exponentials), at 14. The graph does not know the layout, so all count as the largest.
"""
LOGIT_FORWARD_BYTES = 22  # cast 2 + 4; log-softmax: maximum 4, sum 4, read 4, write 4
LOGIT_BACKWARD_BYTES = 26  # gradient of the target: fill 4; of the log-softmax: sum 4, read 4 + 4, write 4; cast 4 + 2


def activation_saved(  # noqa: PLR0913 - where an activation stands
    builder: Builder,
    spec: DenseFeedForward,
    *,
    prefix: str,
    region: Region,
    dropped_by: tuple[Module, ...],
    visits: int = 1,
    routed: bool = False,
) -> tuple[Saved, ...]:
    """Return what an activation keeps beside its output, which the projection behind it keeps.

    Args:
        builder: What builders share.
        spec: The feed-forward.
        prefix: In front of names.
        region: Where it lives.
        dropped_by: Recompute modules that produce all of it again.
        visits: Experts that each token visits.
        routed: Gate and up come from one product, so that neither is freed alone; a row is multiplied by its weight.
    """
    inner, rectifies = spec.intermediate_size, spec.activation in RECTIFIERS
    widths: dict[str, int] = {}
    if spec.gated:
        widths["activation input"] = inner if rectifies and not routed else 2 * inner
        widths["activation of the gate"] = inner
    elif not rectifies:
        widths["activation input"] = inner
    if spec.activation is Activation.RELU2:
        widths["activation before it is squared"] = inner
    if routed:
        widths["unweighted output"] = inner
    return tuple(
        builder.kept(f"{prefix}{name}", width, region=region, dropped_by=dropped_by, visits=visits)
        for name, width in widths.items()
    )


def activation_work(spec: DenseFeedForward, *, routed: bool = False) -> tuple[Passes, int]:
    """Return passes and kernels of an activation, its gate and the weights of routed rows."""
    parts = [(ACTIVATION, ACTIVATION_KERNELS)]
    if spec.activation is Activation.RELU2:
        parts.append((SQUARE, SQUARE_KERNELS))
    if spec.gated:
        parts.append((GATE, GATE_KERNELS))
    if routed:
        parts.append((WEIGHTING, WEIGHTING_KERNELS))
    passes = Passes(forward=sum(part.forward for part, _ in parts), backward=sum(part.backward for part, _ in parts))
    return passes, sum(kernels for _, kernels in parts)


def rotation(builder: Builder, *, rotated: int, whole: int, modules: tuple[Module, ...] = ()) -> list[Operator]:
    """Return the rotation of queries and of keys, in fp32, and the join with what is not rotated.

    Args:
        builder: What builders share.
        rotated: Width of what is rotated.
        whole: Width of queries and keys.
        modules: Recompute modules that it belongs to.
    """
    operators = [
        builder.pointwise(
            "rotary", rotated, ROTATION, region=Region.SHARDED, modules=modules, num_kernels=2 * ROTATION_KERNELS
        )
    ]
    if whole > rotated:
        operators.append(
            builder.pointwise("rotary join", whole, COPY, region=Region.SHARDED, modules=modules, num_kernels=2)
        )
    return operators


def attention_saved(  # noqa: PLR0913 - the shape of an attention core
    builder: Builder,
    *,
    num_heads: int,
    num_kv_heads: int,
    qk_head_dim: int,
    v_head_dim: int,
    window: int | None = None,
    chunk: int | None = None,
) -> tuple[Saved, ...]:
    """Return what the attention core keeps, the input of the projection behind it left out where that is a copy.

    Flash attention wants values as wide as queries. The fused kernels want as many key heads as query heads, and take
    a window as a mask, which all sequences of a micro-batch share: it is counted for each. The unfused core works in
    fp32 and keeps no output.
    """
    kernel, seq_len = builder.workload.attention_kernel, builder.workload.seq_len
    unfused, flash = kernel is AttentionKernel.UNFUSED, kernel is AttentionKernel.FLASH
    held = num_kv_heads if flash else num_heads
    value_dim = max(v_head_dim, qk_head_dim) if flash else v_head_dim
    chunked = chunk is not None and chunk < seq_len

    def heads(name: str, count: int, head_dim: int) -> Saved:
        wide = FP32_BYTES if unfused else None
        return builder.kept(name, count * head_dim, region=Region.SHARDED, granule=head_dim, element_bytes=wide)

    saved = [heads("query", num_heads, qk_head_dim), heads("key", held, qk_head_dim), heads("value", held, value_dim)]
    if unfused:
        return (*saved, *_scores(builder, num_heads, chunk if chunked else None))
    copied = chunked or value_dim > v_head_dim
    saved += [
        heads("attention output by kernel" if copied else "attention output", num_heads, value_dim),
        builder.kept("log-sum-exp", num_heads, region=Region.SHARDED, element_bytes=FP32_BYTES),
    ]
    if window is not None and window < seq_len and not flash:
        saved.append(builder.kept("attention mask", seq_len, region=Region.RESIDUAL))
    return tuple(saved)


def _scores(builder: Builder, num_heads: int, chunk: int | None) -> list[Saved]:
    """Return what the unfused core keeps of scores: their softmax, and what dropout keeps, every pair counted."""
    seq_len = builder.workload.seq_len
    pairs = seq_len**2
    if chunk is not None:
        pairs = seq_len // chunk * chunk**2 + (seq_len % chunk) ** 2
    row = -(-num_heads * pairs // seq_len)
    widths = {"softmax output": FP32_BYTES}
    if builder.workload.attention_dropout > 0:
        widths |= {"attention dropout mask": 1, "attention dropout output": FP32_BYTES}
    return [
        builder.kept(name, row, region=Region.SHARDED, element_bytes=num_bytes) for name, num_bytes in widths.items()
    ]


def choice_saved(builder: Builder, router: Router, *, num_experts: int, visits: int) -> tuple[Saved, ...]:
    """Return what scores and choice of experts keep: scores, indices, and the weights that are made to sum to one."""
    widths = {"router scores": num_experts * FP32_BYTES, "expert choice": visits * INDEX_BYTES}
    if router.normalized:
        widths["expert weights and their sum"] = (visits + 1) * FP32_BYTES
    return tuple(
        builder.kept(name, num_bytes, region=Region.RESIDUAL, element_bytes=1) for name, num_bytes in widths.items()
    )


def rows_saved(builder: Builder, visits: int) -> tuple[Saved, ...]:
    """Return what choosing each expert's rows keeps: a row's token, and its place among the token's experts."""
    return (builder.kept("row order", 2, region=Region.ROUTED, visits=visits, element_bytes=INDEX_BYTES),)


def lookup_saved(builder: Builder) -> tuple[Saved, ...]:
    """Return what look-ups keep: the numbers of tokens and of positions.

    All sequences of a micro-batch share the positions' numbers; they are counted for each.
    """
    names = ["token numbers"]
    if builder.model.position_embedding is PositionEmbedding.LEARNED:
        names.append("position numbers")
    return tuple(builder.kept(name, 1, region=Region.RESIDUAL, element_bytes=INDEX_BYTES) for name in names)


def loss_saved(builder: Builder) -> tuple[Saved, ...]:
    """Return what the cross entropy keeps, and what its backward pass needs beside that; see LOSS_BESIDE_BYTES."""
    vocab_size = builder.model.vocab_size
    return (
        *(
            Saved(
                name=name,
                features=vocab_size,
                element_bytes=num_bytes,
                region=Region.SHARDED,
                vocab_features=True,
            )
            for name, num_bytes in (("log-softmax of logits", FP32_BYTES), (LOSS_BESIDE, LOSS_BESIDE_BYTES))
        ),
        builder.kept("targets", 1, region=Region.RESIDUAL, element_bytes=INDEX_BYTES),
    )
