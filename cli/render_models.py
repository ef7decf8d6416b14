"""Models as tables and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from itertools import pairwise

from ruamel.yaml import YAML

from cli.model_words import feed_forward_in_words, kind_in_words, mixer_in_words
from cli.render import Block, Facts, Item, Line, Style, Table, columns, count, counted
from planner.models.blocks import Block as DecoderBlock
from planner.models.blocks import DenseFeedForward, MixtureOfExperts
from planner.models.bundled import BundledModel
from planner.models.parameter_counts import parameter_counts
from planner.models.specs import ModelSpec
from planner.targets.registry import targets_taking

MOST_RANGES = 6
"""Ranges of layers that are written out; more say how many there are."""


def model_table(models: Sequence[BundledModel]) -> Table:
    """Return one row a model."""
    return Table(
        columns=columns(
            "model",
            ">parameters",
            ">active",
            "kind",
            ">layers",
            ">hidden",
            ">heads",
            ">feed-forward",
            ">vocabulary",
            ">context",
            "files for",
            whole=("kind",),
            spare=("context", "vocabulary", "heads", "feed-forward", "hidden", "layers", "active", "kind"),
        ),
        rows=tuple(_model_row(model.decoder.spec(), model.decoder.num_attention_heads) for model in models),
    )


def _model_row(model: ModelSpec, num_attention_heads: int) -> tuple[str, ...]:
    counts = parameter_counts(model)
    return (
        model.name,
        count(counts.text),
        billions(counts.active),
        kind_in_words(model),
        count(model.num_layers),
        count(model.hidden_size),
        count(num_attention_heads),
        _widths(model),
        count(model.vocab_size),
        count(model.max_position_embeddings),
        targets_in_words(model),
    )


def targets_in_words(model: ModelSpec) -> str:
    """Return the frameworks that files can be written for, or a dash."""
    return ", ".join(target.value for target in targets_taking(model)) or "-"


def billions(value: int) -> str:
    """Return a count of parameters in billions with two decimals."""
    return f"{value / 1e9:,.2f} B"


def _widths(model: ModelSpec) -> str:
    """Return the widest dense feed-forward and the experts' width, those that the model has."""
    parts = [block.feed_forward for block in model.distinct_blocks]
    dense = [part.intermediate_size for part in parts if isinstance(part, DenseFeedForward)]
    experts = [part.expert.intermediate_size for part in parts if isinstance(part, MixtureOfExperts)]
    return " / ".join(count(max(widths)) for widths in (dense, experts) if widths)


def model_blocks(model: ModelSpec, *origin: tuple[str, str]) -> tuple[Block, ...]:
    """Return one model in full, beginning with where it comes from."""
    counts = parameter_counts(model)
    facts = [
        *origin,
        ("architecture", model.architecture),
        ("kind", kind_in_words(model)),
        ("parameters", count(counts.text)),
    ]
    if counts.active != counts.text:
        facts.append(("active per token", count(counts.active)))
    if model.mtp is not None:
        modules = counted(model.mtp.num_modules, "prediction module")
        facts.append(("beside them", f"{count(counts.prediction)} in {modules}"))
    if model.vision is not None:
        facts.append(("vision tower", f"{count(counts.vision)}, not planned ({model.vision.source})"))
    facts += [
        ("layers", count(model.num_layers)),
        ("hidden size", count(model.hidden_size)),
        ("vocabulary", f"{count(model.vocab_size)}, embedding {'tied' if model.tie_word_embeddings else 'not tied'}"),
        ("longest sequence", count(model.max_position_embeddings)),
        ("files for", targets_in_words(model)),
        ("norm", f"{model.norm.value}, epsilon {model.norm_epsilon:g}"),
        ("positions", _positions(model)),
    ]
    if model.traits:
        facts.append(("also", ", ".join(trait.value for trait in model.traits)))
    blocks: list[Block] = [Line(model.name, Style.HEADING), Facts(pairs=tuple(facts))]
    for block in model.distinct_blocks:
        blocks += (Line(f"  {_where(model, block)}:"), *(Item(text) for text in _block_in_words(block) if text))
    if model.mtp is not None:
        blocks += (
            Line("  each prediction module:"),
            *(Item(text) for text in _block_in_words(model.mtp.block) if text),
        )
    return tuple(blocks)


def _block_in_words(block: DecoderBlock) -> tuple[str, str]:
    return mixer_in_words(block.mixer), feed_forward_in_words(block)


def _where(model: ModelSpec, block: DecoderBlock) -> str:
    """Return how many layers are such a block and, where they differ, which; layers are counted from 1."""
    layers = [number for number, other in enumerate(model.blocks, start=1) if other == block]
    many = counted(len(layers), "layer")
    if len(layers) == model.num_layers:
        return many
    steps = {later - earlier for earlier, later in pairwise(layers)}
    if len(steps) == 1 and len(layers) > 2 and steps != {1}:
        return f"{many} (every {_ordinal(steps.pop())} from {layers[0]} to {layers[-1]})"
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges]
    if len(texts) > MOST_RANGES:
        texts = [*texts[: MOST_RANGES - 1], "...", texts[-1]]
    return f"{many} ({', '.join(texts)})"


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _positions(model: ModelSpec) -> str:
    text = model.position_embedding.value
    if model.rope_theta is not None:
        text += f", base {model.rope_theta:,.0f}"
    if model.rotary_fraction != 1.0:
        text += f", on {model.rotary_fraction:g} of each head"
    return text


def model_yaml(bundled: BundledModel) -> str:
    """Return one bundled model as a file in our own form."""
    stream = StringIO()
    writer = YAML()
    writer.dump({"schema": 1, **plain(bundled.facts)}, stream)
    return stream.getvalue()


def plain(facts: Mapping[str, object]) -> dict[str, object]:
    """Return facts as mappings and lists alone."""
    return {key: plain(value) if isinstance(value, Mapping) else value for key, value in facts.items()}


def bundled_document(bundled: BundledModel) -> dict[str, object]:
    """Return one bundled model as JSON."""
    document = model_document(bundled.decoder.spec())
    return {"name": document.pop("name"), "aliases": list(bundled.aliases), "source": bundled.source, **document}


def model_document(model: ModelSpec) -> dict[str, object]:
    """Return one model as JSON."""
    counts = parameter_counts(model)
    return {
        "name": model.name,
        "architecture": model.architecture,
        "kind": kind_in_words(model),
        "parameters": counts.text,
        "active_parameters": counts.active,
        "prediction_parameters": counts.prediction,
        "vision_parameters": counts.vision,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_word_embeddings,
        "max_position_embeddings": model.max_position_embeddings,
        "targets": [target.value for target in targets_taking(model)],
        "traits": [trait.value for trait in model.traits],
        "runs": [{"count": run.count, "block": asdict(run.block)} for run in model.runs],
        "mtp": None if model.mtp is None else asdict(model.mtp),
    }
