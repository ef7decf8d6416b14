"""Megatron-LM: patterns of hybrid models, and lists that say which layer has what."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_patterns import LAYER_LETTERS
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import fact, given, on, one_of, replaced_value
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, HYBRID
from planner.rules.rule import Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

PATTERN = "hybrid_layer_pattern"

LATER_LETTERS = {"D": "0.18", "+": "0.19"}
"""Letters and the version that knows them first."""

MIXER = "megatron/core/ssm/mamba_mixer.py: MambaMixer"

IS_HYBRID = fact("--hybrid-layer-pattern", lambda run: run.hybrid_text is not None, PATTERN, "hybrid_override_pattern")


@rule(
    id="MLM220",
    name="hybrid-letters",
    framework=Framework.MEGATRON,
    prevents="ValueError: In main pattern, '...' is not a valid layer symbol.",
    found_at=FoundAt.START,
    source=HYBRID,
)
def hybrid_letters(run: MegatronRun) -> Iterator[Found]:
    """A hybrid pattern is written in the letters that Megatron knows.

    `M` is Mamba, `G` gated delta net, `*` attention, `D` sparse attention, `+` latent attention, `-` a feed-forward
    layer, `E` experts; `|` separates stages, and `/` stands before each prediction module, which are all alike.
    """
    text = run.hybrid_text
    if text is None:
        return
    main, *modules = text.split("/")
    known = LAYER_LETTERS - {letter for letter, version in LATER_LETTERS.items() if not run.is_from(version)}
    place = run.place(PATTERN, "hybrid_override_pattern")
    for name, part, letters in (
        ("pattern", main, known | {"|"}),
        *(("prediction module", module, known) for module in modules[:1] if any(modules)),
    ):
        unknown = sorted(set(part) - letters)
        if unknown:
            shown = ", ".join(f"`{letter}`" for letter in unknown)
            yield Found(place=place, message=f"The {name} has {shown}.", hint="Write M, G, *, D, +, - or E a layer.")
        elif "*" in part and not {"D", "+"}.isdisjoint(part):
            yield Found(
                place=place,
                message=f"The {name} mixes attention (*) with latent or sparse attention (+, D).",
                hint="Use one kind of attention.",
            )
    if len(set(modules)) > 1:
        yield Found(place=place, message="The prediction modules differ.", hint="Write the same letters in each.")


@rule(
    id="MLM221",
    name="hybrid-stages",
    framework=Framework.MEGATRON,
    prevents="AssertionError: The number of hybrid pipeline segments described by --hybrid-layer-pattern "
    "must be evenly "
    "divisible by --pipeline-model-parallel-size.",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def hybrid_stages(run: MegatronRun) -> Iterator[Found]:
    """A pattern that is split by `|` has a multiple of pp stages."""
    if run.hybrid is not None and len(run.hybrid.stages) > 1 and len(run.hybrid.stages) % run.pp:
        number = len(run.hybrid.stages)
        yield Found(
            place=run.place(PATTERN, "pipeline_model_parallel_size"),
            message=f"The pattern has {number} stages, not a multiple of pp {run.pp}.",
            hint=f"{listed(nearest_multiples(run.pp, number))} stages would do, or pp "
            f"{listed(nearest_divisors(number, run.pp))}.",
        )


@rule(
    id="MLM222",
    name="hybrid-without-stages",
    framework=Framework.MEGATRON,
    prevents="ValueError: Number of layers (...) must be evenly divisible by pipeline-model-parallel-size "
    "(...) when no "
    "pipe separators are specified in the pattern.",
    found_at=FoundAt.BUILD,
    source=HYBRID,
)
def hybrid_without_stages(run: MegatronRun) -> Iterator[Found]:
    """A pattern without `|` is cut into equal parts, which takes layers that pp divides.

    With `--decoder-first-pipeline-num-layers` or `--decoder-last-pipeline-num-layers` the ranks between share the rest.
    """
    if run.hybrid is None or len(run.hybrid.stages) > 1 or run.pp == 1:
        return
    ends = [run.number(f"decoder_{end}_pipeline_num_layers") for end in ("first", "last")]
    rest = len(run.hybrid.letters) - sum(end or 0 for end in ends)
    ranks = run.pp - sum(end is not None for end in ends)
    if ranks > 0 and rest % ranks:
        yield Found(
            place=run.place(PATTERN, "pipeline_model_parallel_size"),
            message=f"{rest} layers of the pattern cannot be split over {ranks} ranks.",
            hint="Write `|` between the stages.",
        )


@rule(
    id="MLM223",
    name="layers-of-the-pattern",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="--hybrid-layer-pattern is set; ignoring --num-layers",
    found_at=FoundAt.NEVER,
    source=ARGUMENTS,
)
def layers_of_the_pattern(run: MegatronRun) -> Iterator[Found]:
    """The pattern of a hybrid says how many layers there are; another `--num-layers` counts for nothing."""
    number = run.number_said("num_layers")
    if run.hybrid is not None and number is not None and number != len(run.hybrid.letters):
        yield Found(
            place=run.place("num_layers"),
            message=f"--num-layers {number} counts for nothing: the pattern has {len(run.hybrid.letters)} layers.",
            hint=f"Write --num-layers {len(run.hybrid.letters)}, or remove it.",
            fix=replaced_value(run, "num_layers", str(len(run.hybrid.letters))),
        )


@rule(
    id="MLM224",
    name="mamba-heads",
    framework=Framework.MEGATRON,
    prevents="AssertionError: nheads must be evenly divisible by tp_size",
    found_at=FoundAt.BUILD,
    source=MIXER,
)
def mamba_heads(run: MegatronRun) -> Iterator[Found]:
    """Tp divides the heads and the groups of Mamba layers, and the groups divide the heads.

    Without `--mamba-num-heads` there are twice the hidden size / `--mamba-head-dim`.
    """
    if run.hybrid is None or "M" not in run.hybrid.letters:
        return
    groups, width, heads = (run.number(f"mamba_{name}") for name in ("num_groups", "head_dim", "num_heads"))
    if groups is None or groups < 1 or width is None or width < 1:
        return
    if heads is None:
        if 2 * run.hidden_size % width:
            yield Found(
                place=run.place("mamba_head_dim"),
                message=f"--mamba-head-dim {width} does not divide twice the hidden size {run.hidden_size}.",
                hint=f"{listed(nearest_divisors(2 * run.hidden_size, width))} would do.",
            )
            return
        heads = 2 * run.hidden_size // width
    for name, number in (("heads", heads), ("groups", groups)):
        if number % run.tp:
            yield Found(
                place=run.place(f"mamba_num_{name}", "tensor_model_parallel_size"),
                message=f"tp {run.tp} does not divide {number} Mamba {name}.",
                hint=f"{listed(nearest_multiples(run.tp, number))} {name} would do.",
            )
    if heads % groups:
        yield Found(
            place=run.place("mamba_num_heads", "mamba_num_groups"),
            message=f"{groups} groups do not divide {heads} Mamba heads.",
            hint=f"{listed(nearest_divisors(heads, groups))} groups would do.",
        )


@rule(
    id="MLM225",
    name="list-of-layers",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Invalid length of moe_layer_pattern: ..., expected ...",
    found_at=FoundAt.BUILD,
    source="megatron/core/models/gpt/gpt_layer_specs.py: get_gpt_decoder_layer_specs",
)
def list_of_layers(run: MegatronRun) -> Iterator[Found]:
    """A list that says something of each layer has as many numbers as there are layers.

    `--moe-layer-freq`, `--linear-attention-freq` and `--no-rope-freq` take such lists.
    """
    for dest, active in (
        ("moe_layer_freq", run.num_experts is not None and run.hybrid is None),
        ("linear_attention_freq", run.said("experimental_attention_variant") is not None),
        ("no_rope_freq", True),
    ):
        value = run.said(dest)
        if active and isinstance(value, list) and len(value) != run.num_layers:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} is a list of {len(value)}, the model has {run.num_layers} layers.",
                hint=f"Write {run.num_layers} numbers.",
            )
        elif active and dest == "moe_layer_freq" and isinstance(value, int) and value < 1:
            yield Found(place=run.place(dest), message=f"--moe-layer-freq is {value}.", hint="Give at least 1.")
        elif active and dest == "no_rope_freq" and isinstance(value, int) and value > 0 and run.num_layers % value:
            yield Found(
                place=run.place(dest),
                message=f"--no-rope-freq {value} does not divide {run.num_layers} layers.",
                hint=f"{listed(nearest_divisors(run.num_layers, value))} would do.",
            )


@rule(
    id="MLM226",
    name="linear-attention-heads",
    framework=Framework.MEGATRON,
    prevents="AssertionError: linear_num_key_heads must be a multiple of (tensor_model_parallel_size * "
    "context_parallel_size).",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def linear_attention_heads(run: MegatronRun) -> Iterator[Found]:
    """Gated delta net needs key and value heads that tp x cp divides, and value heads that the key heads divide."""
    if run.said("experimental_attention_variant") != "gated_delta_net":
        return
    keys, values = run.number("linear_num_key_heads") or 0, run.number("linear_num_value_heads") or 0
    ranks = run.tp * run.cp if run.is_from("0.18") else run.tp
    for dest, number in (("linear_num_key_heads", keys), ("linear_num_value_heads", values)):
        if number < 1 or number % ranks:
            yield Found(
                place=run.place(dest, "tensor_model_parallel_size"),
                message=f"{ranks} ranks (tp x cp) do not divide {number} heads (--{dest.replace('_', '-')}).",
                hint=f"{listed(nearest_multiples(ranks, number))} would do.",
            )
    if keys > 0 and values % keys:
        yield Found(
            place=run.place("linear_num_value_heads", "linear_num_key_heads"),
            message=f"{keys} key heads do not divide {values} value heads.",
            hint=f"{listed(nearest_multiples(keys, values))} value heads would do.",
        )


DEMANDS = (
    Demand(
        id="MLM227",
        name="hybrid-says-its-stages",
        when=IS_HYBRID,
        excludes=(
            given("--num-layers-per-virtual-pipeline-stage"),
            given("--num-virtual-stages-per-pipeline-rank"),
            given("--pipeline-model-parallel-layout"),
            on("--account-for-embedding-in-pipeline-split"),
            on("--account-for-loss-in-pipeline-split"),
        ),
        error="AssertionError: --num-layers-per-virtual-pipeline-stage should not be used with --hybrid-layer-pattern.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The stages of a hybrid are said by `|` in its pattern; more of them than pp are virtual stages.",
    ),
    Demand(
        id="MLM228",
        name="hybrid-stages-and-ends",
        when=fact(
            "--hybrid-layer-pattern with |",
            lambda run: run.hybrid_text is not None and "|" in run.hybrid_text.split("/")[0],
            PATTERN,
        ),
        excludes=(
            given("--decoder-first-pipeline-num-layers"),
            given("--decoder-last-pipeline-num-layers"),
        ),
        error="AssertionError: If --hybrid-layer-pattern contains pipe separators, --decoder-first-pipeline-num-layers "
        "should not be specified",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The pattern says already which stage holds which layer.",
    ),
    Demand(
        id="MLM229",
        name="one-hybrid-pattern",
        when=fact("--hybrid-layer-pattern", lambda run: run.said(PATTERN) is not None, PATTERN),
        excludes=(given("--hybrid-override-pattern"),),
        error="AssertionError: --hybrid-override-pattern and --hybrid-layer-pattern cannot both be specified.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The first is the old name of the second.",
    ),
    Demand(
        id="MLM230",
        name="gated-delta-net-list",
        when=one_of("--experimental-attention-variant", "gated_delta_net"),
        needs=(given("--linear-attention-freq"),),
        error="AssertionError: linear_attention_freq must be set for linear gated_delta_net.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The frequency says which layers have linear attention.",
    ),
    Demand(
        id="MLM231",
        name="gated-delta-net-over-context",
        when=one_of("--experimental-attention-variant", "gated_delta_net"),
        needs=(one_of("--context-parallel-size", 1),),
        error="AssertionError: Gated delta net does not support context parallel for now",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.18",
        why="Its state runs along the whole sequence.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    hybrid_letters,
    hybrid_stages,
    hybrid_without_stages,
    layers_of_the_pattern,
    mamba_heads,
    list_of_layers,
    linear_attention_heads,
    *rules_of_demands(DEMANDS),
)
