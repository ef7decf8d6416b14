"""Models as tables and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from cli.render import Block, Facts, Item, Line, Style, Table, columns, count, counted
from planner.blocks import Block as DecoderBlock
from planner.bundled import BundledModel
from planner.report import total_parameters
from planner.specs import ModelSpec


def model_table(models: Sequence[BundledModel]) -> Table:
    """Return one row a model."""
    return Table(
        columns=columns(
            "model",
            ">parameters",
            ">layers",
            ">hidden",
            ">heads",
            ">kv heads",
            ">feed-forward",
            ">vocabulary",
            ">context",
            spare=("kv heads", "context", "vocabulary", "heads", "feed-forward", "hidden", "layers"),
        ),
        rows=tuple(_model_row(model.decoder.spec()) for model in models),
    )


def _model_row(model: ModelSpec) -> tuple[str, ...]:
    mixers = [block.mixer for block in model.distinct_blocks if block.mixer is not None]
    feed_forwards = [block.feed_forward for block in model.distinct_blocks if block.feed_forward is not None]
    return (
        model.name,
        count(total_parameters(model)),
        count(model.num_layers),
        count(model.hidden_size),
        _each(mixer.num_attention_heads for mixer in mixers),
        _each(mixer.num_key_value_heads for mixer in mixers),
        _each(feed_forward.intermediate_size for feed_forward in feed_forwards),
        count(model.vocab_size),
        count(model.max_position_embeddings),
    )


def _each(values: Iterable[int]) -> str:
    """Return the distinct values in order, most models having one."""
    return " / ".join(count(value) for value in dict.fromkeys(values))


def model_blocks(bundled: BundledModel) -> tuple[Block, ...]:
    """Return one model in full."""
    model = bundled.decoder.spec()
    facts = [
        ("also named", ", ".join(bundled.aliases) or "nothing else"),
        ("source", bundled.source),
        ("architecture", model.architecture),
        ("parameters", count(total_parameters(model))),
        ("layers", count(model.num_layers)),
        ("hidden size", count(model.hidden_size)),
        ("vocabulary", f"{count(model.vocab_size)}, embedding {'tied' if model.tie_word_embeddings else 'not tied'}"),
        ("longest sequence", count(model.max_position_embeddings)),
        ("norm", f"{model.norm.value}, epsilon {model.norm_epsilon:g}"),
        ("positions", _positions(model)),
    ]
    blocks: list[Block] = [Line(model.name, Style.HEADING), Facts(pairs=tuple(facts))]
    for run in model.runs:
        blocks += (
            Line(f"  {counted(run.count, 'layer')}:"),
            *(Item(text) for text in (_mixer_in_words(run.block), _feed_forward_in_words(run.block)) if text),
        )
    return tuple(blocks)


def _positions(model: ModelSpec) -> str:
    text = model.position_embedding.value
    if model.rope_theta is not None:
        text += f", base {model.rope_theta:,.0f}"
    if model.rotary_fraction != 1.0:
        text += f", on {model.rotary_fraction:g} of each head"
    return text


def _mixer_in_words(block: DecoderBlock) -> str:
    mixer = block.mixer
    if mixer is None:
        return ""
    biases = [name for name, used in (("q, k, v", mixer.qkv_bias), ("output", mixer.output_bias)) if used]
    return (
        f"attention: {counted(mixer.num_attention_heads, 'head')} of {mixer.head_dim}, "
        f"{counted(mixer.num_key_value_heads, 'key/value head')}"
        + (f", bias on {' and '.join(biases)}" if biases else "")
        + (", normed queries and keys" if mixer.qk_norm else "")
    )


def _feed_forward_in_words(block: DecoderBlock) -> str:
    feed_forward = block.feed_forward
    if feed_forward is None:
        return ""
    return (
        f"feed-forward: {count(feed_forward.intermediate_size)} wide, {feed_forward.activation.value}"
        + (", gated" if feed_forward.gated else "")
        + (", with bias" if feed_forward.bias else "")
        + (", beside attention" if block.parallel else "")
    )


def model_document(bundled: BundledModel) -> dict[str, object]:
    """Return one model as JSON."""
    model = bundled.decoder.spec()
    return {
        "name": model.name,
        "aliases": list(bundled.aliases),
        "source": bundled.source,
        "architecture": model.architecture,
        "parameters": total_parameters(model),
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_word_embeddings,
        "max_position_embeddings": model.max_position_embeddings,
        "runs": [{"count": run.count, "block": asdict(run.block)} for run in model.runs],
    }
