"""What serving rules ask of a model: heads, experts, layers and positions, from the bundled facts or a config.json."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from planner.readers.arguments import NotSaidError
from planner.readers.named_files import is_regular_file

if TYPE_CHECKING:
    from planner.models.specs import ModelSpec

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The facts that decide which layouts a server can have.

    Args:
        name: What it is called.
        num_layers: Decoder layers.
        num_attention_heads: Query heads of the attention layers, those with most of them; None without attention.
        num_key_value_heads: Their key/value heads; 1 for latent attention, whose one latent every rank holds.
        is_latent: Attention is multi-head latent attention.
        num_experts: Routed experts of a layer; None for a dense model.
        max_positions: Longest sequence that the model says it takes.
    """

    name: str
    num_layers: int
    num_attention_heads: int | None
    num_key_value_heads: int | None
    is_latent: bool
    num_experts: int | None
    max_positions: int


@cache
def served_model(name: str, *, base: Path) -> ServedModel | None:
    """Return the facts of a model by its bundled name, its repository or its folder; None where it is not known.

    Raises:
        InputError: It is a folder whose config.json cannot be read.
    """
    model = served_spec(name, base=base)
    return None if model is None else _facts(model)


def served_spec(name: str, *, base: Path) -> "ModelSpec | None":
    """Return a model by its bundled name, its repository or its folder; None where it is not known.

    Raises:
        InputError: It is a folder whose config.json cannot be read.
    """
    from planner.models.bundled import find_bundled  # noqa: PLC0415 - most files are judged without a model

    bundled = find_bundled(name)
    if bundled is not None:
        return bundled.decoder.spec()
    return _read(base / name) if is_regular_file(base / name / CONFIG_FILE) else None


def served_quantisation(name: str, *, base: Path) -> str:
    """Return the quantisation of a model's files; empty for what a bundled model is published in.

    Raises:
        InputError: It is a folder whose config.json cannot be read.
        NotSaidError: Only the files themselves say the bits of a weight.
    """
    from planner.documents import load_document  # noqa: PLC0415 - likewise
    from planner.models.bundled import find_bundled  # noqa: PLC0415 - likewise

    if find_bundled(name) is not None:
        return "fp8" if name.casefold().endswith("-fp8") else ""
    config = load_document(base / name / CONFIG_FILE).data
    section = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        return "none"
    if section.get("bits", 4) != 4:
        raise NotSaidError(f"the bytes of a weight of {section['bits']} bits")
    return str(section.get("quant_method"))


def _read(folder: Path) -> "ModelSpec":
    """Return the model that a folder's config.json describes."""
    from planner.documents import load_document  # noqa: PLC0415 - likewise
    from planner.schema.model import read_model  # noqa: PLC0415 - pydantic

    file = folder / CONFIG_FILE
    return read_model(str(file), document=load_document(file), path=(), base=Path())


def _facts(model: "ModelSpec") -> ServedModel:
    from planner.models.blocks import LatentAttention, MixtureOfExperts, SelfAttention  # noqa: PLC0415 - likewise

    mixers = [block.mixer for block in model.distinct_blocks]
    attentions = [mixer for mixer in mixers if isinstance(mixer, SelfAttention | LatentAttention)]
    widest = max(attentions, key=lambda mixer: mixer.num_attention_heads, default=None)
    experts = [
        block.feed_forward.num_experts
        for block in model.distinct_blocks
        if isinstance(block.feed_forward, MixtureOfExperts)
    ]
    return ServedModel(
        name=model.name,
        num_layers=model.num_layers,
        num_attention_heads=None if widest is None else widest.num_attention_heads,
        num_key_value_heads=widest.num_key_value_heads if isinstance(widest, SelfAttention) else 1 if widest else None,
        is_latent=isinstance(widest, LatentAttention),
        num_experts=max(experts, default=None),
        max_positions=model.max_position_embeddings,
    )
