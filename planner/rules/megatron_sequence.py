"""Megatron-LM: sequences, and what splits them."""

from collections.abc import Iterator
from math import prod

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, fact, given, has, on
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CONFIG
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_divisors, nearest_multiples, rule

COMMUNICATION = frozenset({"p2p", "a2a", "allgather", "all_gather", "a2a+p2p"})


@rule(
    id="MLM401",
    name="sequence-over-context",
    framework=Framework.MEGATRON,
    prevents="AssertionError: seq-length should be a multiple of 2 * context-parallel-size if "
    "context-parallel-size > 1.",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def sequence_over_context(run: MegatronRun) -> Iterator[Found]:
    """With context parallelism the sequence is a multiple of 2 x cp.

    Each rank holds two pieces, one near the beginning and one near the end, so that causal attention is balanced.
    """
    if run.cp > 1 and run.said("seq_length") is not None and run.seq_length % (2 * run.cp):
        yield Found(
            place=run.place("context_parallel_size", "seq_length"),
            message=f"2 x cp {run.cp} does not divide sequences of {run.seq_length} tokens.",
            hint=f"{listed(nearest_multiples(2 * run.cp, run.seq_length))} tokens would do.",
        )


@rule(
    id="MLM402",
    name="sequence-over-tp",
    framework=Framework.MEGATRON,
    prevents="AssertionError: First dimension of the tensor should be divisible by tensor parallel size",
    found_at=FoundAt.STEP,
    source="megatron/core/tensor_parallel/mappings.py: _split_along_first_dim",
)
def sequence_over_tp(run: MegatronRun) -> Iterator[Found]:
    """With `--sequence-parallel` tp divides the part of a sequence that a context-parallel rank holds."""
    if not run.arguments.is_on("sequence_parallel") or run.tp == 1 or run.seq_length % run.cp:
        return
    part = run.seq_length // run.cp
    unit = run.tp * run.cp * (2 if run.cp > 1 else 1)
    if part % run.tp:
        yield Found(
            place=run.place("seq_length", "tensor_model_parallel_size"),
            message=f"tp {run.tp} does not divide the {part} tokens of a rank.",
            hint=f"Sequences of {listed(nearest_multiples(unit, run.seq_length))} tokens would do.",
        )


@rule(
    id="MLM403",
    name="hierarchical-context-sizes",
    framework=Framework.MEGATRON,
    prevents="AssertionError (context_parallel_size == prod(hierarchical_context_parallel_sizes))",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def hierarchical_context_sizes(run: MegatronRun) -> Iterator[Found]:
    """The product of `--hierarchical-context-parallel-sizes` is cp."""
    sizes = run.said("hierarchical_context_parallel_sizes")
    if isinstance(sizes, list) and sizes and prod(sizes) != run.cp:
        shown = " x ".join(str(size) for size in sizes)
        yield Found(
            place=run.place("hierarchical_context_parallel_sizes", "context_parallel_size"),
            message=f"{shown} is {prod(sizes)}, not cp {run.cp}.",
            hint=f"Give sizes whose product is {run.cp}.",
        )


@rule(
    id="MLM404",
    name="context-communication",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Length of cp_comm_type (...) should equal to the total number of transformer "
    "layers (...)!",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def context_communication(run: MegatronRun) -> Iterator[Found]:
    """`--cp-comm-type` is one word for all layers, or a word a layer: p2p, a2a, allgather or a2a+p2p."""
    kinds = run.words("cp_comm_type")
    if run.cp > 1 and len(kinds) > 1 and len(kinds) != run.num_layers:
        yield Found(
            place=run.place("cp_comm_type"),
            message=f"--cp-comm-type has {len(kinds)} words, the model {run.num_layers} layers.",
            hint=f"Write one word, or {run.num_layers}.",
        )


@rule(
    id="MLM405",
    name="context-communication-word",
    framework=Framework.MEGATRON,
    prevents="ValueError: Unsupported communication type: ...",
    found_at=FoundAt.STEP,
    source="transformer_engine/pytorch/attention: attn_forward_func_with_cp",
)
def context_communication_word(run: MegatronRun) -> Iterator[Found]:
    """`--cp-comm-type` takes p2p, a2a, allgather and a2a+p2p; Megatron's parser takes any word."""
    unknown = [kind for kind in run.words("cp_comm_type") if kind not in COMMUNICATION]
    if run.cp > 1 and unknown:
        yield Found(
            place=run.place("cp_comm_type"),
            message=f"--cp-comm-type {unknown[0]} is not known.",
            hint="Write p2p, a2a, allgather or a2a+p2p.",
        )


@rule(
    id="MLM406",
    name="heads-over-context",
    framework=Framework.MEGATRON,
    prevents="AssertionError: The number of attention heads needs to be divisible by CP size for cp_comm_type = a2a",
    found_at=FoundAt.STEP,
    source="transformer_engine/pytorch/attention: AttnFuncWithCPAndQKVOA2A",
)
def heads_over_context(run: MegatronRun) -> Iterator[Found]:
    """Where heads are exchanged (a2a), its degree divides the heads and the key/value heads of a tensor-parallel rank.

    With a2a that degree is cp, with a2a+p2p the first of `--hierarchical-context-parallel-sizes`.
    """
    kinds = set(run.words("cp_comm_type")) & {"a2a", "a2a+p2p"}
    if run.cp == 1 or not kinds or run.num_attention_heads % run.tp:
        return
    sizes = run.said("hierarchical_context_parallel_sizes")
    degree = run.cp
    if "a2a" not in kinds and isinstance(sizes, list) and sizes:
        degree = sizes[0]
    heads = {"heads": run.num_attention_heads // run.tp}
    if not run.multi_latent_attention:
        heads["key/value heads"] = max(run.num_query_groups // run.tp, 1)
    for name, number in heads.items():
        if degree and number % degree:
            yield Found(
                place=run.place("cp_comm_type", "hierarchical_context_parallel_sizes", "context_parallel_size"),
                message=f"An all-to-all over {degree} ranks does not divide the {number} {name} of a tensor-parallel "
                "rank.",
                hint=f"{listed(nearest_divisors(number, degree))} ranks would do, or --cp-comm-type p2p.",
            )
            return


@rule(
    id="MLM407",
    name="positions-for-the-sequence",
    framework=Framework.MEGATRON,
    prevents="AssertionError: max_position_embeddings (...) must be greater than or equal to seq_length (...).",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def positions_for_the_sequence(run: MegatronRun) -> Iterator[Found]:
    """There are at least as many positions as tokens in a sequence."""
    positions, decoder = run.number("max_position_embeddings"), run.number("decoder_seq_length")
    tokens = max(run.seq_length, decoder or 0)
    if positions is not None and positions < tokens:
        yield Found(
            place=run.place("max_position_embeddings", "seq_length"),
            message=f"{positions} positions for sequences of {tokens} tokens.",
            hint=f"Give --max-position-embeddings at least {tokens}.",
        )


DEMANDS = (
    Demand(
        id="MLM408",
        name="hierarchy-for-both",
        when=has("--cp-comm-type", "a2a+p2p"),
        needs=(given("--hierarchical-context-parallel-sizes"),),
        error="AssertionError: --hierarchical-context-parallel-sizes must be set when a2a+p2p is used in cp comm",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The sizes say over how many ranks heads are exchanged, and over how many a ring passes keys and values.",
    ),
    Demand(
        id="MLM409",
        name="one-sequence-length",
        when=given("--encoder-seq-length"),
        excludes=(fact("--seq-length", lambda run: run.said("seq_length") is not None, "seq_length"),),
        error="AssertionError (encoder_seq_length is None)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Both say the same thing.",
    ),
    Demand(
        id="MLM410",
        name="overlapped-gather-of-activations",
        when=on("--tp-comm-overlap"),
        needs=(on("--sequence-parallel"),),
        error="AssertionError: Tensor parallel communication/GEMM overlap can happen only when sequence parallelism is "
        "enabled",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="What is overlapped are the gathers and scatters of sequence parallelism.",
    ),
    Demand(
        id="MLM411",
        name="context-of-different-sizes",
        when=on("--hybrid-context-parallel"),
        needs=(
            on("--calculate-per-token-loss"),
            fact("--dataloader-type single", lambda run: run.said("dataloader_type") in {None, "single"}),
        ),
        excludes=(
            above("--pipeline-model-parallel-size", 1),
            on("--use-megatron-fsdp"),
            on("--enable-cuda-graph"),
        ),
        error="AssertionError: Hybrid context parallelism not supported with pipeline parallelism",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Each sequence gets a context-parallel group of the size that it needs.",
    ),
    Demand(
        id="MLM412",
        name="context-needs-transformer-engine",
        when=above("--context-parallel-size", 1),
        needs=(
            fact(
                "Transformer Engine (no --transformer-impl local, no --attention-backend local)",
                lambda run: run.said("transformer_impl") != "local" and run.said("attention_backend") != "local",
                "transformer_impl",
                "attention_backend",
            ),
        ),
        error="AssertionError: Context parallelism is only supported by TEDotProductAttention!",
        found_at=FoundAt.BUILD,
        source="megatron/core/transformer/dot_product_attention.py: DotProductAttention",
        why="Megatron's own attention sees whole sequences only.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    sequence_over_context,
    sequence_over_tp,
    hierarchical_context_sizes,
    context_communication,
    context_communication_word,
    heads_over_context,
    positions_for_the_sequence,
    *rules_of_demands(DEMANDS),
)
