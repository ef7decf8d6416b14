"""The layers that a Megatron-LM argument list describes: which layer has what.

The lists' defaults and the meaning of single numbers: `core/models/gpt/gpt_layer_specs.py`, `core/transformer/utils.py:
is_layer_window_attention` and `experimental_attention_variant_module_specs.py` of megatron-core 0.19.2.
"""

import json
from dataclasses import replace

from planner.errors import InputError
from planner.models.blocks import Block, FeedForward, LinearRule, Mixer, SelfAttention
from planner.readers.launch_line import Flag, LaunchLine
from planner.readers.megatron_parts import attention, dense, experts, latent_attention, linear_attention, state_space
from planner.readers.megatron_patterns import HybridPattern, PatternError, parse_list
from planner.readers.megatron_stages import num_layers

MULTIPLE = 256
"""`MLPConfig.ffn_mult_to_intermediate_size` rounds sizes up to a multiple of this."""


def gpt_blocks(job: LaunchLine) -> tuple[Block, ...]:
    """Return the layers of a GPT model, each with a mixer and a feed-forward."""
    count = num_layers(job)
    mixers = _gpt_mixers(job, count)
    return tuple(
        Block(mixer=mixer, feed_forward=experts(job) if sparse else dense(job))
        for mixer, sparse in zip(mixers, _expert_layers(job, count), strict=True)
    )


def _listed(job: LaunchLine, name: str, num_layers: int) -> tuple[int, ...] | int | None:
    """Return what a flag says of each layer: a list, or the period that a single number stands for."""
    flag = job.flag(name)
    if flag is None:
        return None
    value = job.text(name)
    if "[" not in value:
        number = job.integer(name)
        if number < 1:
            raise job.error(flag, "takes a list or a positive number", "Write one.")
        return number
    try:
        numbers = parse_list(value)
    except PatternError as error:
        raise job.error(flag, f"is no list: {error}", "Write, for example, [0]*3+[1]*58.") from None
    if len(numbers) != num_layers or set(numbers) - {0, 1}:
        raise job.error(
            flag, f"is a list of {len(numbers)}, the model has {num_layers} layers", "Write a 0 or 1 a layer."
        )
    return numbers


def _expert_layers(job: LaunchLine, count: int) -> tuple[bool, ...]:
    """Return which layers have experts; a number n means the first of every n."""
    if not job.integer("--num-experts", 0):
        return (False,) * count
    listed = _listed(job, "--moe-layer-freq", count)
    if isinstance(listed, tuple):
        return tuple(bool(value) for value in listed)
    return tuple(index % (listed or 1) == 0 for index in range(count))


def _gpt_mixers(job: LaunchLine, count: int) -> tuple[Mixer, ...]:
    variant = job.choice("--experimental-attention-variant", "none", ("gated_delta_net", "dsa", "none"))
    if job.has("--multi-latent-attention"):
        return (latent_attention(job),) * count
    linear = _linear_layers(job, count) if variant == "gated_delta_net" else (False,) * count
    full = attention(job)
    window, windowed, unrotated = _window(job), _windowed(job, count), _unrotated(job, count)
    return tuple(
        linear_attention(job, LinearRule.GATED_DELTA)
        if linear[index]
        else replace(full, window=window if windowed[index] else None, rotary=not unrotated[index])
        for index in range(count)
    )


def _linear_layers(job: LaunchLine, count: int) -> tuple[bool, ...]:
    """Return which layers have linear attention; a number n means all but the last of every n."""
    listed = _listed(job, "--linear-attention-freq", count)
    if listed is None:
        raise InputError(
            "--experimental-attention-variant gated_delta_net without --linear-attention-freq.",
            location=job.location(job.flag("--experimental-attention-variant")),
            hint="Say which layers have it.",
        )
    if isinstance(listed, tuple):
        return tuple(bool(value) for value in listed)
    return tuple((index + 1) % listed != 0 for index in range(count))


def _window(job: LaunchLine) -> int | None:
    """Return the tokens that a windowed layer sees: those before it that the flag counts, and the token itself."""
    flag = job.flag("--window-size")
    if flag is None:
        return None
    sizes = job.text(flag.name, "").strip("()").split(",")
    before, after = (size.strip() for size in sizes) if len(sizes) == 2 else ("", "")
    if before == "-1":
        return None
    if not before.isdecimal() or len(before) > 9 or after != "0":
        raise job.error(flag, "is no window of tokens before a token", "Write, for example, 127,0.")
    return int(before) + 1


def _windowed(job: LaunchLine, count: int) -> tuple[bool, ...]:
    """Return which layers are windowed; a number n means all but the last of every n."""
    listed = _listed(job, "--window-attn-skip-freq", count)
    if isinstance(listed, tuple):
        return tuple(bool(value) for value in listed)
    return tuple(listed is None or (index + 1) % listed != 0 for index in range(count))


def _unrotated(job: LaunchLine, count: int) -> tuple[bool, ...]:
    """Return which layers are not rotated; a number n means the last of every n."""
    listed = _listed(job, "--no-rope-freq", count)
    if isinstance(listed, tuple):
        return tuple(bool(value) for value in listed)
    return tuple(listed is not None and (index + 1) % listed == 0 for index in range(count))


def hybrid_blocks(job: LaunchLine, pattern: HybridPattern) -> tuple[tuple[Block, ...], Block | None]:
    """Return the layers of a hybrid model, one sub-block each, and the block of a prediction module."""
    blocks = tuple(_block(*_sub_block(job, letter)) for letter in pattern.letters)
    if not pattern.modules:
        return blocks, None
    parts = [_sub_block(job, letter) for letter in pattern.module]
    mixers = [mixer for mixer, _ in parts if mixer is not None]
    feed_forwards = [feed_forward for _, feed_forward in parts if feed_forward is not None]
    flag = job.flag("--hybrid-layer-pattern")
    if flag is not None and (len(mixers) > 1 or len(feed_forwards) > 1 or (mixers and parts[0][0] is None)):
        raise job.error(
            flag, f"has prediction modules {pattern.module!r}", "Plans know a mixer, a feed-forward, or both in a row."
        )
    return blocks, _block(mixers[0] if mixers else None, feed_forwards[0] if feed_forwards else None)


def _block(mixer: Mixer | None, feed_forward: FeedForward | None) -> Block:
    return Block(mixer=mixer, feed_forward=feed_forward, num_norms=(mixer is not None) + (feed_forward is not None))


def _sub_block(job: LaunchLine, letter: str) -> tuple[Mixer | None, FeedForward | None]:
    if letter == "-":
        return None, dense(job)
    if letter == "E":
        return None, experts(job)
    if letter == "M":
        return state_space(job), None
    if letter == "G":
        return linear_attention(job, LinearRule.GATED_DELTA), None
    if letter == "*":
        return replace(attention(job), window=_window(job)), None
    flag = job.flag("--hybrid-layer-pattern") or job.flag("--hybrid-override-pattern")
    message = f"has latent attention ({letter}), whose latents are not normalised there"
    if flag is None:
        raise InputError(f"the hybrid pattern {message}.", location=job.location(None), hint="Use M, G, *, - and E.")
    raise job.error(flag, message, "Plans know M, G, *, - and E.")


def heterogeneous_blocks(job: LaunchLine, flag: Flag) -> tuple[Block, ...]:
    """Return layers that differ, from the JSON text that stands in the argument list."""
    if flag.name == "--heterogeneous-layers-config-path":
        raise job.error(
            flag,
            "names a file, which is not read",
            "Give its text with --heterogeneous-layers-config-encoded-json as well.",
        )
    try:
        text = json.loads(job.text(flag.name, ""))
    except (ValueError, RecursionError):
        raise job.error(flag, "is not JSON", "Give the text of the model's configuration.") from None
    configs = text.get("block_configs") if isinstance(text, dict) else None
    if not isinstance(configs, list) or len(configs) != num_layers(job):
        raise job.error(flag, "has no block_configs with an entry for each layer", "Write one a layer.")
    return tuple(_heterogeneous_block(job, flag, config, index) for index, config in enumerate(configs))


def _heterogeneous_block(job: LaunchLine, flag: Flag, config: object, index: int) -> Block:
    mixer_entry, feed_forward_entry = _entry(config, "attention"), _entry(config, "ffn") or _entry(config, "mlp")
    if not mixer_entry or not feed_forward_entry:
        raise job.error(flag, f"has no attention and ffn in block_configs[{index}]", "Write both.")
    if mixer_entry.get("replace_with_linear") or feed_forward_entry.get("replace_with_linear"):
        raise job.error(
            flag, f"replaces a sub-block by a linear layer in block_configs[{index}]", "Plans do not know such layers."
        )
    mixer: SelfAttention | None = None if mixer_entry.get("no_op") else attention(job)
    if feed_forward_entry.get("no_op"):
        return _block(mixer, None)
    size = feed_forward_entry.get("ffn_hidden_size")
    factor = feed_forward_entry.get("ffn_mult")
    if size is None and isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < 1e6:
        size = -(-int(2 * factor * job.integer("--hidden-size") / 3) // MULTIPLE) * MULTIPLE
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 40:
        raise job.error(flag, f"has no size of the feed-forward in block_configs[{index}]", "Write ffn_hidden_size.")
    return _block(mixer, replace(dense(job), intermediate_size=size))


def _entry(config: object, name: str) -> dict[str, object]:
    entry = config.get(name) if isinstance(config, dict) else None
    return entry if isinstance(entry, dict) else {}
