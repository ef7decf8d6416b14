"""How a Megatron-LM launch script splits the layers into pipeline stages.

Meaning: `megatron/core/transformer/pipeline_parallel_layer_layout.py` and `transformer_block.py:
get_num_layers_to_build` of megatron-core 0.19.2.
"""

import re

from planner.errors import InputError, Location
from planner.readers.launch_line import Flag, LaunchLine
from planner.readers.megatron_patterns import MOST_LAYERS, HybridPattern, PatternError, parse_hybrid

LARGEST_REPEAT = 4096
"""Largest repetition in a pipeline layout that is unrolled; no model has as many layers."""

LONGEST_LAYOUT = 1 << 16
"""Most letters of a layout that is unrolled."""


def hybrid_pattern(job: LaunchLine) -> HybridPattern | None:
    """Return the layers of a hybrid model; None for other models."""
    flag = job.flag("--hybrid-layer-pattern") or job.flag("--hybrid-override-pattern")
    if flag is None:
        return None
    try:
        return parse_hybrid(job.text(flag.name, ""))
    except PatternError as error:
        raise job.error(
            flag, f"is no hybrid pattern: {error}", "Write a letter a layer, | between stages, / before modules."
        ) from None


def num_layers(job: LaunchLine) -> int:
    """Return the decoder layers; those of a hybrid are the letters of its pattern."""
    pattern = hybrid_pattern(job)
    if pattern is not None:
        return len(pattern.letters)
    count, flag = job.positive("--num-layers"), job.flag("--num-layers")
    if count > MOST_LAYERS and flag is not None:
        raise job.error(flag, f"is above {MOST_LAYERS}", "Write the model's own number.")
    return count


def stage_layers(job: LaunchLine, pp: int) -> tuple[int, ...]:
    """Return the decoder layers of each virtual stage, in model order."""
    hybrid = hybrid_pattern(job)
    if hybrid is not None and len(hybrid.stages) > 1:
        return _hybrid_stages(job, hybrid, pp)
    layers = num_layers(job)
    layout = job.flag("--pipeline-model-parallel-layout")
    if layout is not None:
        return _custom_stages(job, layout, pp=pp, layers=layers)
    first = job.flag("--decoder-first-pipeline-num-layers")
    last = job.flag("--decoder-last-pipeline-num-layers")
    with_embedding = job.has("--account-for-embedding-in-pipeline-split")
    with_loss = job.has("--account-for-loss-in-pipeline-split")
    slots = layers + with_embedding + with_loss
    vpp = _virtual_stages(job, slots=slots, pp=pp)
    per_rank: list[int] = []
    if first is None and last is None:
        per_rank = [_divided(job, slots, pp, "pipeline stages")] * pp
    else:
        head = job.integer("--decoder-first-pipeline-num-layers", 0)
        tail = job.integer("--decoder-last-pipeline-num-layers", 0)
        middle = pp - (first is not None) - (last is not None)
        inner = _divided(job, layers - head - tail, middle, "middle pipeline stages") if middle > 0 else 0
        per_rank = [head] * (first is not None) + [inner] * middle + [tail] * (last is not None)
    counts = [_divided(job, per_rank[stage % pp], vpp, "virtual stages") for stage in range(pp * vpp)]
    counts[0] -= with_embedding
    counts[-1] -= with_loss
    if sum(counts) != layers or min(counts) < 0:
        raise InputError(
            f"the pipeline stages hold {sum(counts)} layers, the model has {layers}.",
            location=Location(file=job.file),
            hint="Change --num-layers or the split.",
        )
    return tuple(counts)


def _hybrid_stages(job: LaunchLine, pattern: HybridPattern, pp: int) -> tuple[int, ...]:
    if len(pattern.stages) % pp:
        raise InputError(
            f"the hybrid pattern has {len(pattern.stages)} stages, not a multiple of pp = {pp}.",
            location=Location(file=job.file),
            hint="Add or merge stages.",
        )
    return tuple(len(stage) for stage in pattern.stages)


def _virtual_stages(job: LaunchLine, *, slots: int, pp: int) -> int:
    if job.has("--num-virtual-stages-per-pipeline-rank"):
        return job.positive("--num-virtual-stages-per-pipeline-rank")
    if job.has("--num-layers-per-virtual-pipeline-stage"):
        chunk = job.positive("--num-layers-per-virtual-pipeline-stage")
        return _divided(job, _divided(job, slots, pp, "pipeline stages"), chunk, "layers of a virtual stage")
    return 1


def _divided(job: LaunchLine, layers: int, parts: int, what: str) -> int:
    if parts < 1 or layers < 0 or layers % parts:
        raise InputError(
            f"{layers} layers cannot be split over {parts} {what}.",
            location=Location(file=job.file),
            hint="Choose a split without remainder, or --pipeline-model-parallel-layout.",
        )
    return layers // parts


def _custom_stages(job: LaunchLine, flag: Flag, *, pp: int, layers: int) -> tuple[int, ...]:
    text = job.text(flag.name, "")
    try:
        stages = unrolled(text).split("|")
    except PatternError as error:
        raise job.error(flag, str(error), "Place every layer once.") from None
    unknown = sorted(set("".join(stages)) - set("EtmL"))
    if unknown:
        raise job.error(flag, f"has {', '.join(map(repr, unknown))}", "Plans know E, t, m, L and |.")
    joined = "".join(stages)
    if not (joined.startswith("E") and joined.endswith("L") and joined.count("E") == joined.count("L") == 1):
        raise job.error(flag, "does not begin with its only E and end with its only L", "Write E...L.")
    modules = job.integer("--mtp-num-layers", 0)
    if joined.count("m") != modules or not stages[-1].endswith("m" * modules + "L"):
        raise job.error(
            flag,
            f"does not place {modules} prediction modules (m) directly before L",
            "Plans hold them on the LM head's stage.",
        )
    if joined.count("t") != layers:
        raise job.error(flag, f"places {joined.count('t')} layers, the model has {layers}", "Place every layer once.")
    if len(stages) % pp:
        raise job.error(flag, f"has {len(stages)} stages, not a multiple of pp = {pp}", "Add or merge stages.")
    return tuple(stage.count("t") for stage in stages)


def unrolled(text: str) -> str:
    """Return a pipeline layout with `(...)*n` and `x*n` written out; commas mean nothing.

    Raises:
        PatternError: It repeats more than any model has layers.
    """
    text = _repeated(r"\(([^)]+)\)\*([0-9]+)", text.replace(",", ""))
    return _repeated(r"(.)\*([0-9]+)", text)


def _repeated(pattern: str, text: str) -> str:
    counts = [(match.group(1), match.group(2)) for match in re.finditer(pattern, text, re.ASCII)]
    if any(len(count) > 4 or int(count) > LARGEST_REPEAT for _, count in counts):
        raise PatternError(f"repeats more than {LARGEST_REPEAT} times")
    if sum(len(part) * int(count) for part, count in counts) > LONGEST_LAYOUT:
        raise PatternError(f"is longer than {LONGEST_LAYOUT} letters")
    return re.sub(pattern, lambda match: match.group(1) * int(match.group(2)), text)
