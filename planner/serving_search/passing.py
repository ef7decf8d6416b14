"""Which engines of a split plan may pass caches on to which, as vLLM 0.32.0's connectors check it.

What carries caches is NixlConnector, by which the decode engine pulls; where prefill engines have pipeline stages it is
NixlPushConnector, by which each stage writes its layers into the whole cache of the decode engine. All engines behind
one router have one connector, because the two do not talk to each other. What they refuse stands in
`vllm/distributed/kv_transfer/kv_connector/v1`:

- pipeline stages: never in decode engines, and not beside recurrent states; the pulling connector knows one stage only
  (`nixl/base_worker.py: NixlBaseConnectorWorker.__init__`, `_validate_remote_agent_handshake`);
- decode context parallelism: by the pulling connector, of latent attention, over all tensor-parallel ranks
  (`vllm/config/vllm.py: VllmConfig.__post_init__`, `nixl/connector.py: NixlPushConnector`);
- recurrent states: those of Mamba and of gated delta rules (`ssm_conv_transfer_utils.py: derive_mamba_conv_split`), and
  between equal tensor-parallel degrees (docs/features/nixl_connector_compatibility.md);
- a draft: in both engines or in neither, because its layers' caches are passed on with the model's ("Number of KV
  layers must match"), whose key/value heads also say how they are cut (`_validate_remote_agent_handshake`). The number
  of guesses may differ. Beside recurrent states vLLM's table of what works together leaves it open;
- tensor-parallel degrees: one divides the other (`utils.py: TransferTopology.tp_ratio`), and prefill has not more ranks
  than decode where it holds copies of key/value heads (`_validate_remote_agent_handshake`).
"""

from collections.abc import Mapping

from planner.models.blocks import LatentAttention, LinearAttention, LinearRule, SelfAttention, StateSpace
from planner.models.specs import ModelSpec
from planner.serving_plans.layout import NIXL, NIXL_PUSH, Role
from planner.serving_search.candidates import Candidate

Pairing = frozenset[int]
"""Options whose prefill engines may all pass caches on to all their decode engines."""


def split_refusal(candidate: Candidate, role: Role) -> str | None:  # noqa: PLR0911 - one reason each
    """Return why an engine cannot have a role in a split plan; None where it can."""
    shape, model = candidate.shape, candidate.ground.prices.model
    if candidate.build.guesses and has_states(model):
        return "split: a draft beside recurrent states, which vLLM does not say that it passes on"
    if candidate.build.guesses and shape.dcp > 1:
        return "split: a draft beside decode context parallelism: NixlConnector takes that of latent attention"
    if _has_lightning(model):
        return "split: NixlConnector passes on states of Mamba and of gated delta rules, not of lightning attention"
    if shape.pp > 1 and role is Role.DECODE:
        return "split: pipeline stages in decode, which no connector of vLLM writes into"
    if shape.pp > 1 and has_states(model):
        return "split: pipeline stages beside recurrent states, which NixlPushConnector does not take"
    if shape.pp > 1 and shape.dcp > 1:
        return "split: decode context parallelism beside pipeline stages, which NixlPushConnector does not take"
    if shape.dcp > 1 and not is_latent(model):
        return "split: decode context parallelism of heads: NixlConnector takes that of latent attention"
    if shape.dcp not in {1, shape.tp}:
        return "split: decode context parallelism over a part of tp: NixlConnector takes all of it or none"
    return None


def pair_refusal(  # noqa: PLR0911 - one reason each
    first: Candidate, second: Candidate, connector: str
) -> str | None:
    """Return why an engine cannot pass caches on to another; None where it can.

    Args:
        first: Makes them.
        second: Goes on from them.
        connector: What carries them.
    """
    model, one, other = first.ground.prices.model, first.shape, second.shape
    if connector == NIXL_PUSH:
        if max(one.dcp, other.dcp) > 1:
            return "NixlPushConnector takes no decode context parallelism"
        if one.pp > 1 and other.tp > one.tp and has_windows(model) and not is_latent(model):
            return "NixlPushConnector does not cut the heads of windowed layers smaller than their stages do"
    elif one.pp > 1:
        return "NixlConnector pulls from one pipeline stage only"
    if bool(first.build.guesses) != bool(second.build.guesses):
        return "a draft in one of two engines: both have the same layers, or the caches do not match"
    if first.build.guesses and one.tp != other.tp and not _draft_splits_alike(first):
        return "a draft whose key/value heads split otherwise goes between equal tensor-parallel degrees"
    if max(one.tp, other.tp) % min(one.tp, other.tp):
        return "one tensor-parallel degree divides the other"
    if has_states(model):
        return None if one.tp == other.tp else "recurrent states go between equal tensor-parallel degrees"
    if one.tp > other.tp and one.tp > key_value_heads(model):
        return "fewer decode than prefill ranks, which hold copies of key/value heads"
    return None


def connector_of(prefills: list[Candidate]) -> str:
    """Return what carries the caches of these prefill engines."""
    return NIXL_PUSH if any(candidate.shape.pp > 1 for candidate in prefills) else NIXL


def kind_of(candidate: Candidate) -> tuple[int, ...]:
    """Return what decides with whom an engine can pair: of each kind the best shapes stay in the list."""
    shape, model = candidate.shape, candidate.ground.prices.model
    guesses = int(candidate.build.guesses > 0)
    return (guesses, int(shape.pp > 1), int(shape.dcp > 1), shape.tp if has_states(model) else 0)


def pairings_of(prefills: Mapping[int, Candidate], decodes: Mapping[int, Candidate]) -> tuple[Pairing, ...]:
    """Return every largest set of options whose prefill engines may pass caches on to all their decode engines.

    Args:
        prefills: Prefill engines by option.
        decodes: Decode engines by option.
    """
    found: set[Pairing] = set()
    for connector in (NIXL, NIXL_PUSH):
        takers = {
            first: frozenset(
                second
                for second, receiver in decodes.items()
                if pair_refusal(candidate, receiver, connector) is None and not _other_connector(candidate, connector)
            )
            for first, candidate in prefills.items()
        }
        # What several prefill engines may all pass on to is the common part of what each may.
        common: set[frozenset[int]] = set()
        for group in takers.values():
            common |= {group, *(group & known for known in common)}
        for group in common - {frozenset()}:
            found.add(group | {first for first, taken in takers.items() if group <= taken})
    largest = [one for one in found if not any(one < other for other in found)]
    return tuple(sorted(largest, key=lambda one: (-len(one), sorted(one))))


def _other_connector(prefill: Candidate, connector: str) -> bool:
    return (prefill.shape.pp > 1 and connector == NIXL) or (prefill.shape.dcp > 1 and connector == NIXL_PUSH)


def has_states(model: ModelSpec) -> bool:
    """Return whether a model has recurrent layers."""
    return any(isinstance(block.mixer, StateSpace | LinearAttention) for block in model.distinct_blocks)


def has_windows(model: ModelSpec) -> bool:
    """Return whether some layers keep a window of the tokens alone."""
    mixers = [block.mixer for block in model.distinct_blocks]
    return any(isinstance(mixer, SelfAttention) and (mixer.window or mixer.chunk) for mixer in mixers)


def is_latent(model: ModelSpec) -> bool:
    """Return whether attention caches a latent, whole on every tensor-parallel rank."""
    return any(isinstance(block.mixer, LatentAttention) for block in model.distinct_blocks)


def key_value_heads(model: ModelSpec) -> int:
    """Return the fewest key/value heads of a layer; of latent attention as many as there may be ranks."""
    mixers = [block.mixer for block in model.distinct_blocks]
    heads = [mixer.num_key_value_heads for mixer in mixers if isinstance(mixer, SelfAttention)]
    return min(heads, default=1 << 30)


def _draft_splits_alike(candidate: Candidate) -> bool:
    """Return whether a draft has as many key/value heads as the model, none of them latent."""
    draft, model = candidate.ground.draft, candidate.ground.prices.model
    assert draft is not None, "nothing guesses without a draft"
    other = draft.prices.model
    return not (is_latent(model) or is_latent(other)) and key_value_heads(model) == key_value_heads(other)


def _has_lightning(model: ModelSpec) -> bool:
    mixers = [block.mixer for block in model.distinct_blocks]
    return any(isinstance(mixer, LinearAttention) and mixer.rule is LinearRule.LIGHTNING for mixer in mixers)
