"""Megatron-LM: layers over pipeline stages, virtual stages, and the micro-batches that go through them."""

from collections.abc import Iterator

from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, at_least, fact, given, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import GRADIENT_FUSION
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, INTERLEAVED, LAYOUT, PARALLEL
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_divisors, nearest_multiples, rule

FIRST, LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"

CHUNK, VIRTUAL = "num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"

STAGES = "pipeline_model_parallel_layout"

WAYS = (CHUNK, VIRTUAL, STAGES)


def _is_plain(run: MegatronRun) -> bool:
    """Return whether every pipeline rank holds as many layers as the next."""
    return run.hybrid is None and run.layout_stages is None and not run.is_uneven


def _is_interleaved(run: MegatronRun) -> bool:
    """Return whether a rank holds several virtual stages; a split that does not fit is reported by itself."""
    try:
        return run.vpp > 1
    except NotSaidError:
        return False


INTERLEAVING = fact("interleaving (several virtual stages on a rank)", _is_interleaved, CHUNK, VIRTUAL, STAGES)


@rule(
    id="MLM201",
    name="layers-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Number of layers should be divisible by the pipeline-model-parallel size",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def layers_divisible(run: MegatronRun) -> Iterator[Found]:
    """Pp divides the layers, unless the split is said.

    `--account-for-embedding-in-pipeline-split` and `--account-for-loss-in-pipeline-split` count as a layer each. Uneven
    splits are said by `--pipeline-model-parallel-layout`, or by the layers of the first and the last rank.
    """
    if _is_plain(run) and run.counted_layers % run.pp:
        extra = run.counted_layers - run.num_layers
        near = tuple(number - extra for number in nearest_multiples(run.pp, run.counted_layers) if number > extra)
        fitting = tuple(d for d in nearest_divisors(run.counted_layers, run.pp) if d <= 2 * run.pp)
        yield Found(
            place=run.place("pipeline_model_parallel_size", "num_layers"),
            message=f"pp {run.pp} does not divide {run.num_layers} layers"
            + (f" with {extra} more for embedding and loss." if extra else "."),
            hint=f"pp {listed(fitting)} would do, {listed(near)} layers, or --pipeline-model-parallel-layout.",
        )


@rule(
    id="MLM202",
    name="one-way-to-split",
    framework=Framework.MEGATRON,
    prevents="AssertionError: No more than one of the following arguments can be set at the same time",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def one_way_to_split(run: MegatronRun) -> Iterator[Found]:
    """Virtual stages are said in one way: layers of each, number of them on a rank, or a layout."""
    ways = [dest for dest in WAYS if run.said(dest) is not None]
    if len(ways) > 1:
        flags = ", ".join(f"--{dest.replace('_', '-')}" for dest in ways)
        yield Found(place=run.place(ways[1]), message=f"{flags} say the same thing.", hint="Keep one of them.")


@rule(
    id="MLM203",
    name="virtual-stages-divide-layers",
    framework=Framework.MEGATRON,
    prevents="AssertionError: number of layers per pipeline stage must be divisible number of layers per virtual "
    "pipeline stage",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def virtual_stages_divide_layers(run: MegatronRun) -> Iterator[Found]:
    """The virtual stages of a rank split its layers evenly.

    Of `--num-layers-per-virtual-pipeline-stage` Megatron checks it with the arguments, of
    `--num-virtual-stages-per-pipeline-rank` when the configuration of the model is made.
    """
    chunk, virtual = run.number(CHUNK), run.number(VIRTUAL)
    if not _is_plain(run) or run.counted_layers % run.pp or (chunk is None) == (virtual is None):
        return
    layers, parts = run.counted_layers // run.pp, chunk if virtual is None else virtual
    if parts is None or parts < 1:
        yield Found(
            place=run.place(CHUNK, VIRTUAL), message="A rank has no virtual stage.", hint="Give a number of at least 1."
        )
    elif layers % parts:
        yield Found(
            place=run.place(CHUNK, VIRTUAL),
            message=f"{layers} layers of a pipeline rank cannot be split by {parts}.",
            hint=f"{listed(nearest_divisors(layers, parts))} would do.",
        )


@rule(
    id="MLM204",
    name="uneven-split",
    framework=Framework.MEGATRON,
    prevents="ValueError: number of layers at middle stage: ... must be divisible by the middle pipeline "
    "model parallel "
    "size",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def uneven_split(run: MegatronRun) -> Iterator[Found]:
    """With layers of its own on the first or the last rank, the ranks between split the rest evenly.

    Every rank has layers, and every virtual stage of a rank as many as the next.
    """
    if not run.is_uneven or run.layout_stages is not None or run.hybrid is not None:
        return
    first, last = run.number(FIRST), run.number(LAST)
    ranks = run.pp - (first is not None) - (last is not None)
    rest = run.num_layers - (first or 0) - (last or 0)
    place = run.place(FIRST, LAST)
    for name, number in (("first", first), ("last", last)):
        if number is not None and number < 1:
            yield Found(place=place, message=f"The {name} rank has {number} layers.", hint="Give it at least one.")
            return
    if rest < 0 or bool(rest) != bool(ranks) or (ranks > 0 and rest % ranks):
        near = nearest_multiples(ranks, rest) if ranks > 0 and rest > 0 else ()
        yield Found(
            place=place,
            message=f"{rest} of {run.num_layers} layers are left for the {ranks} ranks between.",
            hint=f"{listed(near)} would do." if near else "Give every rank layers, and every layer a rank.",
        )
        return
    virtual = run.number(VIRTUAL)
    sizes = [number for number in (first, last, rest // ranks if ranks else None) if number]
    if virtual is not None and virtual > 0 and any(size % virtual for size in sizes):
        yield Found(
            place=run.place(VIRTUAL),
            message=f"{virtual} virtual stages do not divide the layers of every rank: {listed(tuple(sizes))}.",
            hint="Choose a number that divides all of them.",
        )


@rule(
    id="MLM205",
    name="layout-stages",
    framework=Framework.MEGATRON,
    prevents="AssertionError: The length of pipeline_model_parallel_layout must be divisible by "
    "pipeline_model_parallel_size",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def layout_stages(run: MegatronRun) -> Iterator[Found]:
    """A pipeline layout has a multiple of pp stages, written with these letters and separated by `|`.

    `E` is the embedding, `t` a layer, `m` a prediction module, `L` the loss; `(...)*n` and `x*n` repeat.
    """
    stages = run.layout_stages
    if stages is None:
        return
    unknown = sorted(set("".join(stages)) - set("EtmL"))
    if unknown:
        yield Found(
            place=run.place(STAGES),
            message=f"The layout has {', '.join(f'`{letter}`' for letter in unknown)}.",
            hint="Write E, t, m and L, `|` between stages, and `(...)*n` or `x*n` for what repeats.",
        )
    elif len(stages) % run.pp:
        yield Found(
            place=run.place(STAGES),
            message=f"The layout has {len(stages)} stages, not a multiple of pp {run.pp}.",
            hint=f"{listed(nearest_multiples(run.pp, len(stages)))} stages would do.",
        )


@rule(
    id="MLM206",
    name="layout-layers",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Number of decoder layers ... must match num_layers ...",
    found_at=FoundAt.BUILD,
    source=LAYOUT,
)
def layout_layers(run: MegatronRun) -> Iterator[Found]:
    """A pipeline layout begins with its only `E`, ends with its only `L`, and holds every layer once."""
    stages = run.layout_stages
    if stages is None or set("".join(stages)) - set("EtmL") or run.hybrid is not None:
        return
    letters = "".join(stages)
    if not (letters.startswith("E") and letters.endswith("L") and letters.count("E") == letters.count("L") == 1):
        yield Found(
            place=run.place(STAGES),
            message="The layout does not begin with its only `E` and end with its only `L`.",
            hint="Write E...L.",
        )
    elif letters.count("t") != run.num_layers:
        yield Found(
            place=run.place(STAGES, "num_layers"),
            message=f"The layout holds {letters.count('t')} layers, the model has {run.num_layers}.",
            hint="Place every layer once.",
        )


@rule(
    id="MLM207",
    name="layout-prediction-modules",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Number of mtp layers in layout must match mtp_num_layers",
    found_at=FoundAt.BUILD,
    source=LAYOUT,
)
def layout_prediction_modules(run: MegatronRun) -> Iterator[Found]:
    """A layout holds the prediction modules together, behind all layers, in the last virtual stage of a rank.

    `--mtp-num-layers` says how many there are.
    """
    stages = run.layout_stages
    if stages is None or len(stages) % run.pp or set("".join(stages)) - set("EtmL"):
        return
    letters, modules = "".join(stages), run.mtp_num_layers
    place = run.place(STAGES, "mtp_num_layers")
    if letters.count("m") != modules:
        message, hint = f"The layout holds {letters.count('m')} prediction modules, --mtp-num-layers is {modules}.", ""
        yield Found(place=place, message=message, hint=hint or "Write an m for each of them.")
    elif modules and "t" in letters[letters.index("m") :]:
        yield Found(place=place, message="A layer stands behind a prediction module.", hint="Write the m behind all t.")
    elif modules and any("m" in stage for stage in stages[: -run.pp]):
        yield Found(
            place=place,
            message="A prediction module stands before the last virtual stage of its rank.",
            hint=f"Put it into one of the last {run.pp} stages.",
        )
    elif modules and sum("m" in stage for stage in stages) > 1:
        yield Found(place=place, message="Prediction modules stand in several stages.", hint="Put them into one.")


@rule(
    id="MLM210",
    name="interleaved-micro-batches",
    framework=Framework.MEGATRON,
    prevents="ValueError: The number of contiguous micro-batches in a virtual pipeline stage should range in [PP, M]",
    found_at=FoundAt.STEP,
    source=INTERLEAVED,
)
def interleaved_micro_batches(run: MegatronRun) -> Iterator[Found]:
    """The interleaved schedule needs enough micro-batches, in whole groups.

    A group has `--microbatch-group-size-per-virtual-pipeline-stage` micro-batches, pp without it. It has at least pp,
    there are at least as many micro-batches as a group has, and what is left over is nothing or at least pp.
    """
    if run.vpp <= 1 or run.pp == 1:
        return
    microbatches = run.num_microbatches
    group = run.number("microbatch_group_size_per_vp_stage") or run.pp
    place = run.place("microbatch_group_size_per_vp_stage", "global_batch_size", "micro_batch_size")
    one_round = run.micro_batch_size * run.dp
    batches = listed(tuple(number * one_round for number in nearest_multiples(max(group, run.pp), microbatches)))
    if group < run.pp:
        yield Found(
            place=place,
            message=f"Groups of {group} micro-batches are smaller than pp {run.pp}.",
            hint=f"Give --microbatch-group-size-per-virtual-pipeline-stage at least {run.pp}.",
        )
    elif microbatches < group:
        yield Found(
            place=place,
            message=f"{microbatches} micro-batches of a replica are fewer than a group of {group}.",
            hint=f"A global batch of {batches} would do.",
        )
    elif 0 < microbatches % group < run.pp:
        yield Found(
            place=place,
            message=f"{microbatches} micro-batches in groups of {group} leave {microbatches % group}, fewer than pp "
            f"{run.pp}.",
            hint=f"A global batch of {batches} would do.",
        )


DEMANDS = (
    Demand(
        id="MLM208",
        name="interleaving-needs-a-pipeline",
        when=INTERLEAVING,
        needs=(above("--pipeline-model-parallel-size", 1),),
        error="AssertionError: When interleaved schedule is used, pipeline-model-parallel size should be "
        "greater than 1",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Virtual stages take turns on the ranks of a pipeline.",
    ),
    Demand(
        id="MLM209",
        name="interleaving-without-overlap",
        when=INTERLEAVING
        & fact("--no-overlap-p2p-communication", lambda run: run.said("overlap_p2p_comm") is False, "overlap_p2p_comm"),
        needs=(above("--pipeline-model-parallel-size", 2),),
        error="AssertionError: When interleaved schedule is used and p2p communication overlap is disabled, "
        "pipeline-model-parallel size should be greater than 2",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Without overlap two ranks would have several sends and receives between them in one batch.",
    ),
    Demand(
        id="MLM211",
        name="uneven-split-needs-virtual-stages",
        when=given("--num-layers-per-virtual-pipeline-stage"),
        excludes=(
            given("--decoder-first-pipeline-num-layers"),
            given("--decoder-last-pipeline-num-layers"),
        ),
        error="AssertionError: please use --num-virtual-stages-per-pipeline-rank to specify virtual pipeline parallel "
        "degree when enable uneven pipeline parallelism",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Where ranks hold different numbers of layers, --num-virtual-stages-per-pipeline-rank says the degree.",
    ),
    Demand(
        id="MLM212",
        name="uneven-split-counts-layers",
        when=given("--decoder-first-pipeline-num-layers") | given("--decoder-last-pipeline-num-layers"),
        excludes=(
            on("--account-for-embedding-in-pipeline-split"),
            on("--account-for-loss-in-pipeline-split"),
        ),
        error="ValueError: num_layers_in_first_pipeline_stage ... cannot be set at the same time with "
        "account_for_embedding_in_pipeline_split",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The layers of the first and the last rank are said, so nothing is left to be counted for them.",
    ),
    Demand(
        id="MLM213",
        name="layout-says-it-all",
        when=given("--pipeline-model-parallel-layout"),
        excludes=(
            given("--decoder-first-pipeline-num-layers"),
            given("--decoder-last-pipeline-num-layers"),
            on("--account-for-embedding-in-pipeline-split"),
            on("--account-for-loss-in-pipeline-split"),
        ),
        error="ValueError: pipeline_model_parallel_layout cannot be set with other pipeline layout arguments.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="A layout says which stage holds which layer.",
    ),
    Demand(
        id="MLM214",
        name="deferred-embedding-gradient",
        when=on("--defer-embedding-wgrad-compute"),
        needs=(
            above("--pipeline-model-parallel-size", 1),
            GRADIENT_FUSION,
            at_least("--wgrad-deferral-limit", 0),
        ),
        error="ValueError: Cannot defer embedding wgrad compute when pipeline model parallel is not used",
        found_at=FoundAt.BUILD,
        source=PARALLEL,
        why="The gradient is computed while the last micro-batches drain from the pipeline.",
    ),
    Demand(
        id="MLM215",
        name="overlap-in-warmup",
        when=on("--overlap-p2p-communication-warmup-flush", "overlap_p2p_comm_warmup_flush"),
        needs=(INTERLEAVING & on("overlapped communication of stages", "overlap_p2p_comm"),),
        error="ValueError: Pipeline parallel communication overlapping in warmup and flush is only compatible with "
        "overlap_p2p_comm but not batch_p2p_comm.",
        found_at=FoundAt.BUILD,
        source=PARALLEL,
        why="Without interleaving Megatron switches the overlap off.",
    ),
    Demand(
        id="MLM216",
        name="prediction-modules-positions",
        when=said("--mtp-num-layers"),
        needs=(one_of("--position-embedding-type", "rope", "none"),),
        error="AssertionError: Multi-Token Prediction (MTP) is not supported with ... position embedding type.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Prediction modules shift the tokens, which other position embeddings do not follow.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    layers_divisible,
    one_way_to_split,
    virtual_stages_divide_layers,
    uneven_split,
    layout_stages,
    layout_layers,
    layout_prediction_modules,
    interleaved_micro_batches,
    *rules_of_demands(DEMANDS),
)
