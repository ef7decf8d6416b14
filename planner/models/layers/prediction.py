"""Multi-token prediction: modules behind the final norm that share embedding and LM head with the model.

As Megatron-LM's `MultiTokenPredictionLayer`: each module looks the shifted tokens up again, normalises them and what
came before it, projects both side by side to the stream's width, runs its block and a norm, and computes logits and
loss of its own with the model's LM head. What comes before it is the output of the final norm, or of the norm of the
module in front.
"""

from dataclasses import replace

from planner.models.graph import Axis, Divisible, LayerGraph, Lookup, Operator, Parallel, Weight
from planner.models.layers.block import build_block
from planner.models.layers.builder import Builder, Part
from planner.models.layers.ends import lm_head_and_loss


def prediction_modules(builder: Builder) -> Part:
    """Return the operators of every module, under prefixes that keep names unique; none without prediction."""
    mtp = builder.model.mtp
    if mtp is None:
        return Part(operators=())
    block = build_block(builder, mtp.block)
    operators: list[Operator] = []
    before = ""
    for index in range(1, mtp.num_modules + 1):
        prefix = f"mtp {index} "
        operators += _module(builder, block, prefix=prefix, before=before)
        before = prefix
    if not builder.model.tie_word_embeddings:
        # The modules' only copy of the table; a tied LM head is a copy already.
        table = Weight(
            name="mtp word embedding",
            shape=(builder.model.vocab_size, builder.hidden),
            split_dim=0,
            trainable=builder.base_trains,
            vocab_dim=0,
            shared_with_embedding=True,
        )
        operators[0] = replace(operators[0], weights=(table,))
    projected = Divisible(what="hidden_size", size=builder.hidden, axes=(Axis.TP,))
    return Part(operators=tuple(operators), divisible=(*block.divisible, projected))


def _module(builder: Builder, block: LayerGraph, *, prefix: str, before: str) -> tuple[Operator, ...]:
    """Return one module behind the norm whose output's name starts with `before`."""
    stream_norm = builder.norm("stream norm")
    projection = builder.linear(
        "projection",
        in_features=2 * builder.hidden,
        out_features=builder.hidden,
        parallel=Parallel.COLUMN,
        bias=False,
        input_name="joined embedding and stream",
        normed_input=False,
        # Split over tp and gathered whole at once, as a single head would be.
        whole_heads=1,
    )
    own = (
        Operator(name="word embedding", work=Lookup(hidden_size=builder.hidden, dtype=builder.dtype)),
        builder.norm("embedding norm"),
        stream_norm,
        projection,
        *block.operators,
        builder.norm("final norm"),
        *lm_head_and_loss(builder, "final norm output", ()),
    )
    named = [_prefixed(operator, prefix) for operator in own]
    # The LM head in front keeps the same tensor.
    named[own.index(stream_norm)] = replace(
        _prefixed(stream_norm, prefix), saved=(builder.stream(f"{before}final norm output"),)
    )
    return tuple(named)


def _prefixed(operator: Operator, prefix: str) -> Operator:
    """Return `operator` with every name of it under `prefix`."""
    return replace(
        operator,
        name=prefix + operator.name,
        weights=tuple(replace(weight, name=prefix + weight.name) for weight in operator.weights),
        saved=tuple(replace(saved, name=prefix + saved.name) for saved in operator.saved),
    )
