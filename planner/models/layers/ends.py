"""The ends of the chain: embedding in front; final norm, LM head and loss behind."""

from dataclasses import replace

from planner.models.blocks import PositionEmbedding
from planner.models.graph import (
    LayerGraph,
    Linear,
    Lookup,
    LossReduction,
    Operator,
    Parallel,
    Pointwise,
    Region,
    Saved,
    Weight,
)
from planner.models.layers import eager
from planner.models.layers.builder import COPY, Builder, Part, share_saved
from planner.requests.workload import DType

LOGIT_FORWARD_BYTES = 22  # cast 2 + 4, maximum 4, subtract and exponentiate in place 8, sum 4
LOGIT_BACKWARD_BYTES = 22  # normalise in place 8, subtract target in place 8, cast 4 + 2


def build_embedding(builder: Builder) -> LayerGraph:
    """Return token look-up, learned positions and the norm behind them."""
    model = builder.model
    weights = [builder.weight("word embedding", model.vocab_size, builder.hidden, split_dim=0, vocab_dim=0)]
    if model.position_embedding is PositionEmbedding.LEARNED:
        weights.append(builder.weight("position embedding", model.num_position_rows, builder.hidden))
    operators = [
        Operator(
            name="word embedding",
            work=Lookup(hidden_size=builder.hidden, dtype=builder.dtype),
            weights=tuple(weights),
            saved=eager.lookup_saved(builder) if builder.eager else (),
        )
    ]
    if model.embedding_norm:
        operators.append(builder.norm("embedding norm"))
    if builder.workload.hidden_dropout > 0:
        mask = Saved(name="embedding dropout mask", features=builder.hidden, element_bytes=1, region=Region.RESIDUAL)
        operators.append(
            builder.pointwise("embedding dropout", builder.hidden, COPY, region=Region.RESIDUAL, saved=(mask,))
        )
    return LayerGraph(name="embedding", operators=tuple(operators), layer_input=None)


def build_head(builder: Builder, prediction: Part) -> LayerGraph:
    """Return final norm, LM head and cross entropy, with multi-token prediction between them."""
    model = builder.model
    weights = [
        Weight(
            name="lm head weight",
            shape=(model.vocab_size, builder.hidden),
            split_dim=0,
            trainable=builder.base_trains,
            vocab_dim=0,
            shared_with_embedding=model.tie_word_embeddings,
        )
    ]
    if model.lm_head_bias:
        weights.append(builder.weight("lm head bias", model.vocab_size, split_dim=0, vocab_dim=0))
    return LayerGraph(
        name="head",
        operators=share_saved(
            (
                builder.norm("final norm"),
                *prediction.operators,
                *lm_head_and_loss(builder, "final norm output", tuple(weights)),
            )
        ),
        layer_input=builder.stream("layer input"),
        divisible=prediction.divisible,
    )


def lm_head_and_loss(builder: Builder, input_name: str, weights: tuple[Weight, ...]) -> tuple[Operator, ...]:
    """Return LM head and cross entropy; the logits are in 16 bit, the loss in 32."""
    vocab_size = builder.model.vocab_size
    product = Linear(
        in_features=builder.hidden,
        out_features=vocab_size,
        parallel=Parallel.COLUMN,
        dtype=builder.dtype,
        trains_weight=builder.base_trains,
        vocab_output=True,
    )
    # Megatron-LM's fused cross entropy, emitted for bf16, sums target logits and exponentials in one reduction.
    fused_loss = builder.dtype is DType.BF16
    softmax = Saved(
        name="softmax of logits",
        features=vocab_size,
        element_bytes=DType.FP32.num_bytes,
        region=Region.SHARDED,
        vocab_features=True,
    )
    forward_bytes, backward_bytes = LOGIT_FORWARD_BYTES, LOGIT_BACKWARD_BYTES
    if builder.eager:
        forward_bytes, backward_bytes = eager.LOGIT_FORWARD_BYTES, eager.LOGIT_BACKWARD_BYTES
    return (
        Operator(
            name="lm head",
            work=product,
            weights=weights,
            saved=(replace(builder.stream(input_name), weight_input=True),) if builder.base_trains else (),
        ),
        Operator(name="loss reductions", work=LossReduction(num_reductions=2 if fused_loss else 3)),
        Operator(
            name="cross entropy",
            work=Pointwise(
                kernel="cross entropy",
                forward_bytes_per_token=forward_bytes,
                backward_bytes_per_token=backward_bytes,
                region=Region.SHARDED,
                vocab_features=vocab_size,
                num_kernels=6,
            ),
            saved=eager.loss_saved(builder) if builder.eager else (softmax,),
        ),
    )
