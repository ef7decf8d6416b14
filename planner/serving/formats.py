"""The number formats of a served model: what its weights, its experts and its cache are held in.

A quantisation is a word of the engines' or of a model card. What it leaves alone is said here: embeddings, norms, the
router and the LM head stay in 16 bit in every checkpoint that engines load by these words; nvfp4 checkpoints of models
with latent attention leave the attention's projections in 16 bit (`exclude_modules` of their `hf_quant_config.json`),
mxfp4 checkpoints everything but the experts (model card of gpt-oss).
"""

from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.models.blocks import LatentAttention
from planner.models.specs import ModelSpec
from profiles.kernels.operations import CACHE_BYTES, FORMATS, Format

PLAIN = FORMATS["bfloat16"]

BLOCK_SCALES = 4 / (128 * 128)
"""Bytes of scales of a block-quantised fp8 weight: one fp32 number for 128 x 128 (DeepSeek-V3, arXiv 2412.19437)."""

GROUP_SCALES = 2 / 128
"""Bytes of scales of a 4-bit integer weight: one 16-bit number for 128 (GPTQ, AWQ)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFormats:
    """What a served model is held in.

    Args:
        name: The quantisation's name here.
        attention: Of the projections of attention and of recurrences.
        feed_forward: Of dense feed-forwards and shared experts.
        experts: Of routed experts.
        grouped: Name of the kernels that multiply routed experts (`planner.serving.grouped`).
        head: Of the LM head and the embedding.
        cache: Of keys and values, "bfloat16" or "fp8".
    """

    name: str
    attention: Format
    feed_forward: Format
    experts: Format
    grouped: str
    head: Format
    cache: str

    @property
    def cache_bytes(self) -> float:
        """Return the bytes of one cached number."""
        return CACHE_BYTES[self.cache]

    @property
    def quantised(self) -> bool:
        """Return whether some linear layers are not in 16 bit."""
        return any(kind.weight_bytes < 2 for kind in (self.attention, self.feed_forward, self.experts))

    def with_cache(self, cache: str) -> "ServedFormats":
        """Return the same with a cache in another format."""
        return replace(self, cache=cache)


_WORDS = {
    "none": "bf16",
    "auto": "bf16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
    "fp8": "fp8",
    "modelopt": "fp8",
    "fp8_block": "fp8_block",
    "int8": "int8",
    "sq": "int8",
    "w8a8": "int8",
    "int8_wo": "int8_wo",
    "w8a16": "int8_wo",
    "int4": "int4",
    "int4_wo": "int4",
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "modelopt_fp4": "nvfp4",
    "mxfp4": "mxfp4",
}
"""Engines' and model cards' words, and the formats that they stand for."""

_WEIGHTS = {
    "bf16": PLAIN,
    "fp8": FORMATS["fp8"],
    "fp8_block": replace(FORMATS["fp8"], weight_bytes=1 + BLOCK_SCALES),
    "int8": FORMATS["int8"],
    "int8_wo": FORMATS["int8_wo"],
    "int4": replace(FORMATS["int4_wo"], weight_bytes=0.5 + GROUP_SCALES),
    "nvfp4": FORMATS["nvfp4"],
    "mxfp4": FORMATS["w4a16_mxfp4"],
}


PER_TENSOR = frozenset({"MixtralForCausalLM", "Llama4ForConditionalGeneration", "Llama4ForCausalLM"})
"""Mixtures whose published fp8 checkpoints scale whole tensors or channels; those of the others scale blocks."""


_PUBLISHED = {"deepseek-v3": "fp8", "deepseek-r1": "fp8", "kimi-k2": "fp8", "minimax-m2": "fp8", "gpt-oss": "mxfp4"}
"""What weights are published in that are not published in 16 bit, by the beginning of a model's name."""


def _name(word: str, model: ModelSpec) -> str:
    """Return the quantisation that a word means for a model."""
    published = next((name for start, name in _PUBLISHED.items() if model.name.startswith(start)), "bf16")
    name = published if not word else _WORDS[word]
    if published == "mxfp4" and name != "bf16":
        return "mxfp4"
    if name == "fp8" and model.has_experts and model.architecture not in PER_TENSOR:
        return "fp8_block"
    return name


def quantisations() -> tuple[str, ...]:
    """Return the words that name a quantisation."""
    return tuple(_WORDS)


def formats_of(quantisation: str, model: ModelSpec, *, cache: str = "bfloat16") -> ServedFormats:
    """Return what a model is held in under a quantisation.

    Args:
        quantisation: An engine's or a model card's word; empty for what its weights are published in.
        model: The model: which parts stay in 16 bit depends on it.
        cache: Format of keys and values.

    Raises:
        InputError: There is no such word.
    """
    word = quantisation.strip().lower().replace("-", "_")
    if word and word not in _WORDS:
        raise InputError(
            f"quantisation {quantisation[:40]!r} is not known.", hint=f"Use one of {', '.join(quantisations())}."
        )
    name = _name(word, model)
    chosen = _WEIGHTS[name]
    latent = any(isinstance(block.mixer, LatentAttention) for block in model.distinct_blocks)
    attention = PLAIN if name == "mxfp4" or (name == "nvfp4" and latent) else chosen
    feed_forward = PLAIN if name == "mxfp4" and model.has_experts else chosen
    return ServedFormats(
        name=name, attention=attention, feed_forward=feed_forward, experts=chosen, grouped=name, head=PLAIN, cache=cache
    )
