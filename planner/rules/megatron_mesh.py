"""Megatron-LM: degrees against the number of GPUs, the heads and the widths."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import on
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, GROUPS, LINEAR
from planner.rules.rule import (
    Fix,
    Found,
    FoundAt,
    Rule,
    Severity,
    fast_links,
    listed,
    nearest_divisors,
    nearest_multiples,
    rule,
)

POSITIVE = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_attention_heads",
    "hidden_size",
    "num_distributed_optimizer_instances",
    "make_vocab_size_divisible_by",
    "vocab_size",
)
"""Sizes by which something is divided, and those that cannot be empty."""

REQUIRED = {
    "hidden_size": "--hidden-size",
    "num_attention_heads": "--num-attention-heads",
    "max_position_embeddings": "--max-position-embeddings",
    "micro_batch_size": "--micro-batch-size",
}
"""Values without which `validate_args` stops, and their flags; `MLM201` and `MLM401` ask for the others."""


def _has_no_tokenizer_file(run: MegatronRun) -> bool:
    """Return whether the size of the vocabulary can come from nowhere: the null tokenizer knows none."""
    kind = run.said("tokenizer_type")
    if kind is None:
        return all(run.said(dest) is None for dest in ("vocab_file", "tokenizer_model"))
    return kind in {"NullTokenizer", "NullMultimodalTokenizer"}


@rule(
    id="MLM100",
    name="size-below-one",
    framework=Framework.MEGATRON,
    prevents="ZeroDivisionError: integer modulo by zero",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def size_below_one(run: MegatronRun) -> Iterator[Found]:
    """Degrees and the sizes that they divide are at least 1."""
    for dest in POSITIVE:
        use = run.arguments.use(dest)
        if use is not None and isinstance(use.value, int) and use.value < 1:
            yield Found(
                place=use.location, message=f"{use.spelled} is {use.value}.", hint="Give a number of at least 1."
            )


@rule(
    id="MLM101",
    name="world-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: world size (...) is not divisible by total_model_size",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def world_divisible(run: MegatronRun) -> Iterator[Found]:
    """Tp x pp x cp divides the number of GPUs.

    Tensor, pipeline and context parallel ranks make up one replica of the model, and the GPUs are split into whole
    replicas. Weight shards beyond tp (`--tensor-parallel-num-weight-shards`) count as well.
    """
    world, replica = run.world_size, run.replica
    if world % replica:
        shards = f" x {run.weight_shards} weight shards" if run.weight_shards > 1 else ""
        yield Found(
            place=run.place("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
            message=f"{world} GPUs are not a multiple of tp {run.tp} x pp {run.pp} x cp {run.cp}{shards} = {replica}.",
            hint=f"A replica of {listed(nearest_divisors(world, replica))} GPUs would do, "
            f"or {listed(nearest_multiples(replica, world))} GPUs.",
        )


@rule(
    id="MLM102",
    name="expert-mesh-divisible",
    framework=Framework.MEGATRON,
    prevents="RuntimeError: world_size (...) is not divisible by expert_tensor_model_pipeline_parallel size (...)",
    found_at=FoundAt.BUILD,
    source=GROUPS,
)
def expert_mesh_divisible(run: MegatronRun) -> Iterator[Found]:
    """Etp x ep x pp divides the number of GPUs.

    Experts have a mesh of their own over the same GPUs. Without `--expert-tensor-parallel-size`, etp is tp.
    """
    world, block = run.world_size, run.etp * run.ep * run.pp * run.expert_weight_shards
    if world % run.replica == 0 and world % block:
        ranks = world // run.pp
        yield Found(
            place=run.place("expert_model_parallel_size", "expert_tensor_parallel_size"),
            message=f"{world} GPUs are not a multiple of etp {run.etp} x ep {run.ep} x pp {run.pp} = {block}.",
            hint=f"ep {listed(nearest_divisors(max(ranks // run.etp, 1), run.ep))} would do"
            + (f", or etp 1 with ep {listed(nearest_divisors(ranks, run.ep))}." if run.etp > 1 else "."),
        )


@rule(
    id="MLM103",
    name="heads-divisible",
    framework=Framework.MEGATRON,
    prevents="ValueError: num_attention_heads (...) must be a multiple of tensor_model_parallel_size (...)",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def heads_divisible(run: MegatronRun) -> Iterator[Found]:
    """Tp divides the number of attention heads: each tensor-parallel rank holds whole ones."""
    if run.num_attention_heads % run.tp:
        yield Found(
            place=run.place("tensor_model_parallel_size", "num_attention_heads"),
            message=f"tp {run.tp} does not divide {run.num_attention_heads} attention heads.",
            hint=f"tp {listed(nearest_divisors(run.num_attention_heads, run.tp))} would do.",
        )


@rule(
    id="MLM104",
    name="query-groups-against-tp",
    framework=Framework.MEGATRON,
    prevents="ValueError: num_query_groups (...) must be a multiple or divisor of tensor_model_parallel_size (...)",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def query_groups_against_tp(run: MegatronRun) -> Iterator[Found]:
    """The key/value heads are a multiple or a divisor of tp.

    Each rank holds whole key/value heads, or several ranks hold a copy of one.
    """
    groups = run.num_query_groups
    if run.num_attention_heads % run.tp == 0 and groups % run.tp and run.tp % groups:
        fitting = [n for n in range(1, run.num_attention_heads + 1) if n % run.tp == 0 or run.tp % n == 0]
        near = tuple(sorted(sorted(fitting, key=lambda n: (abs(n - groups), n))[:3]))
        yield Found(
            place=run.place("num_query_groups", "tensor_model_parallel_size"),
            message=f"{groups} key/value heads are neither a multiple nor a divisor of tp {run.tp}.",
            hint=f"{listed(near)} key/value heads would do, or tp {listed(nearest_divisors(groups, run.tp))}.",
        )


@rule(
    id="MLM105",
    name="copied-key-value-heads",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="nothing is said: key/value heads are held and computed several times",
    found_at=FoundAt.NEVER,
    source="megatron/core/transformer/attention.py: SelfAttention",
)
def copied_key_value_heads(run: MegatronRun) -> Iterator[Found]:
    """With tp above the number of key/value heads, ranks compute copies of them."""
    if run.num_query_groups < run.tp and run.tp % run.num_query_groups == 0 and not run.multi_latent_attention:
        yield Found(
            place=run.place("tensor_model_parallel_size", "num_query_groups"),
            message=f"tp {run.tp} holds each of {run.num_query_groups} key/value heads "
            f"{run.tp // run.num_query_groups} times.",
            hint=f"tp {run.num_query_groups} holds each once.",
        )


@rule(
    id="MLM106",
    name="widths-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: ... is not divisible by ...",
    found_at=FoundAt.BUILD,
    source=LINEAR,
)
def widths_divisible(run: MegatronRun) -> Iterator[Found]:
    """Tp divides the width of the feed-forward layers, etp that of the experts.

    Each rank holds equal parts of the weights. Without `--moe-ffn-hidden-size` experts are as wide as other layers.
    """
    dense = run.num_experts is None or run.hybrid is not None or run.said("moe_layer_freq") != 1
    widths = []
    if dense and (run.hybrid is None or "-" in run.hybrid.letters):
        widths.append(("ffn_hidden_size", run.ffn_hidden_size, run.tp, "tp"))
    if run.num_experts is not None:
        expert = run.number("moe_ffn_hidden_size")
        widths.append(("moe_ffn_hidden_size", run.ffn_hidden_size if expert is None else expert, run.etp, "etp"))
        shared = run.number("moe_shared_expert_intermediate_size")
        widths += [("moe_shared_expert_intermediate_size", shared, run.tp, "tp")] if shared is not None else []
    for dest, width, degree, name in widths:
        if width % degree:
            yield Found(
                place=run.place(dest, "tensor_model_parallel_size"),
                message=f"{name} {degree} does not divide the width {width} (--{dest.replace('_', '-')}).",
                hint=f"A width of {listed(nearest_multiples(degree, width))} would do.",
            )


@rule(
    id="MLM107",
    name="head-width",
    framework=Framework.MEGATRON,
    prevents="AssertionError (hidden_size % num_attention_heads == 0)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def head_width(run: MegatronRun) -> Iterator[Found]:
    """Without `--kv-channels` the heads split the hidden size evenly."""
    heads, hidden = run.num_attention_heads, run.hidden_size
    if run.said("kv_channels") is None and hidden % heads:
        yield Found(
            place=run.place("num_attention_heads", "hidden_size"),
            message=f"{heads} heads do not divide the hidden size {hidden}, and --kv-channels is not given.",
            hint=f"{listed(nearest_divisors(hidden, heads))} heads would do, "
            f"a hidden size of {listed(nearest_multiples(heads, hidden))}, or --kv-channels.",
        )


@rule(
    id="MLM108",
    name="vocabulary-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: ... is not divisible by ...",
    found_at=FoundAt.BUILD,
    source="megatron/core/tensor_parallel/utils.py: VocabUtility",
)
def vocabulary_divisible(run: MegatronRun) -> Iterator[Found]:
    """A vocabulary whose padded size is given is a multiple of tp.

    Without `--padded-vocab-size` Megatron pads `--vocab-size` to a multiple of `--make-vocab-size-divisible-by` x tp.
    """
    padded = run.number("padded_vocab_size")
    if padded is not None and padded % run.tp:
        yield Found(
            place=run.place("padded_vocab_size"),
            message=f"tp {run.tp} does not divide the padded vocabulary of {padded}.",
            hint=f"{listed(nearest_multiples(run.tp, padded))} would do.",
        )


@rule(
    id="MLM109",
    name="required-size",
    framework=Framework.MEGATRON,
    prevents="AssertionError: ... argument is None",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def required_size(run: MegatronRun) -> Iterator[Found]:
    """Megatron's parser asks for no flag, but its checks ask for a few sizes.

    `--num-layers` (or a hybrid pattern, or `--encoder-num-layers`) and `--seq-length` are among them.
    """
    if run.arguments.is_given("yaml_cfg") or run.arguments.is_on("use_checkpoint_args"):
        return
    missing = [flag for dest, flag in REQUIRED.items() if run.said(dest) is None]
    if all(run.said(dest) is None for dest in ("num_layers", "encoder_num_layers")) and run.hybrid_text is None:
        missing.append("--num-layers")
    if all(run.said(dest) is None for dest in ("seq_length", "encoder_seq_length")):
        missing.append("--seq-length")
    if all(run.said(dest) is None for dest in ("vocab_size", "padded_vocab_size")) and _has_no_tokenizer_file(run):
        missing.append("--vocab-size")
    if missing:
        run.check_whole()
        flags = ", ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        yield Found(place=run.arguments.start, message=f"{flags} {verb} missing.", hint=f"Add {flags}.")


@rule(
    id="MLM110",
    name="sequence-parallel-for-experts",
    framework=Framework.MEGATRON,
    prevents="ValueError: During training, performance may degrade if MoE and tensor parallelism are enabled without "
    "also enabling sequence parallelism.",
    found_at=FoundAt.STEP,
    source="megatron/core/transformer/moe/moe_layer.py: MoELayer.forward",
)
def sequence_parallel_for_experts(run: MegatronRun) -> Iterator[Found]:
    """Experts with tp above 1 need `--sequence-parallel`.

    Every tensor-parallel rank would route the same tokens. Sequence parallelism gives each rank tokens of its own.
    """
    if run.has_expert_layers and run.tp > 1 and not run.arguments.is_on("sequence_parallel"):
        yield Found(
            place=run.place("tensor_model_parallel_size"),
            message=f"tp {run.tp} with {run.num_experts} experts and without --sequence-parallel.",
            hint="Add --sequence-parallel, or use tp 1.",
            fix=on("--sequence-parallel").fix(run, beside=("tensor_model_parallel_size",)),
        )


@rule(
    id="MLM111",
    name="sequence-parallel-without-tp",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="Disabling sequence parallelism because tensor model parallelism is disabled",
    found_at=FoundAt.NEVER,
    source=ARGUMENTS,
)
def sequence_parallel_without_tp(run: MegatronRun) -> Iterator[Found]:
    """Sequence parallelism splits what tensor parallelism leaves whole; with tp 1 Megatron switches it off."""
    use = run.arguments.use("sequence_parallel")
    if use is not None and run.tp == 1:
        yield Found(
            place=use.location,
            message="--sequence-parallel does nothing with tp 1.",
            hint="Remove it, or raise --tensor-model-parallel-size.",
            fix=Fix(location=use.location, old=use.spelled, new=""),
        )


@rule(
    id="MLM112",
    name="tp-beyond-the-node",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="nothing is said: every layer waits for the network between the nodes",
    found_at=FoundAt.NEVER,
    source="order of ranks in megatron/core/parallel_state.py: initialize_model_parallel",
)
def tp_beyond_the_node(run: MegatronRun) -> Iterator[Found]:
    """A tensor-parallel group stays within the GPUs of a node.

    Each layer sums activations over it several times. Where `--cluster` names the cluster, its fast links count: they
    may join several nodes, or a part of one.
    """
    if run.gpus_per_node is None or run.num_nodes is None or (run.num_nodes == 1 and run.domain_gpus is None):
        return
    near, words = fast_links(run.domain_gpus, run.gpus_per_node)
    if near % run.tp:
        within = nearest_divisors(near, min(run.tp, near))
        yield Found(
            place=run.place("tensor_model_parallel_size"),
            message=f"Groups of tp {run.tp} do not stay within {words}.",
            hint=f"tp {listed(within)} would stay within.",
        )


RULES: tuple[Rule[MegatronRun], ...] = (
    size_below_one,
    world_divisible,
    expert_mesh_divisible,
    heads_divisible,
    query_groups_against_tp,
    copied_key_value_heads,
    widths_divisible,
    head_width,
    vocabulary_divisible,
    required_size,
    sequence_parallel_for_experts,
    sequence_parallel_without_tp,
    tp_beyond_the_node,
)
