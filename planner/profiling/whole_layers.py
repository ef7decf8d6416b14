"""Whole layers that a profile has measured, beside the sum of their parts by the same profile: a check, no price.

The parts are those of the planner's own graph of a dense layer (`planner.models.layers`), uncut, each priced by the
profile as plans price it, without what hours of training take. The measured layer writes gradients of weights in its
own format, where training adds them to an fp32 buffer, so those products are priced without the addition. Memory is the
ledger's: weights, their gradients, all saved tensors and the temporaries of one layer's backward pass.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step
from planner.requests.workload import Precision, TrainWorkload
from profiles.analytic import AnalyticCostModel
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.judging import judged_on
from profiles.measure.points import COLUMNS, PHASES, Point
from profiles.ops import ComputeOp, Gemm
from profiles.profiled import ProfiledCostModel
from profiles.recorded import Recording

MOST_SECONDS_OFF = 0.08
"""Part by which forward and backward pass together may differ from the sum of their parts."""

MOST_BYTES_OFF = 0.05
"""Part by which the peak may differ from the ledger."""

_PRECISIONS = {"bf16": Precision.BF16, "fp16": Precision.FP16}


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLayer:
    """One measured layer.

    Args:
        name: Its sizes.
        measured_seconds: By phase, as far as it was measured.
        parts_seconds: The sum of its parts, for the same phases.
        measured_bytes: Its peak; None where it was not measured.
        parts_bytes: By the ledger.
    """

    name: str
    measured_seconds: dict[str, float]
    parts_seconds: dict[str, float]
    measured_bytes: int | None
    parts_bytes: int

    @property
    def seconds_off(self) -> float:
        """Return by what part the sum of the parts differs from what was measured."""
        return sum(self.parts_seconds.values()) / sum(self.measured_seconds.values()) - 1.0

    @property
    def bytes_off(self) -> float | None:
        """Return by what part the ledger differs from the peak; None where that was not measured."""
        return None if self.measured_bytes is None else self.parts_bytes / self.measured_bytes - 1.0

    @property
    def gaps(self) -> tuple[str, ...]:
        """Return what differs by more than it may."""
        found = ["time"] if abs(self.seconds_off) > MOST_SECONDS_OFF else []
        if self.bytes_off is not None and abs(self.bytes_off) > MOST_BYTES_OFF:
            found.append("memory")
        return tuple(found)


def whole_layers(recording: Recording, cluster: Cluster | None) -> tuple[WholeLayer, ...]:
    """Return every layer that a profile has measured beside its parts; none where nothing prices those.

    Args:
        recording: The profile.
        cluster: Where it was measured; None for one node of its GPU, where the catalogue holds it.
    """
    measured = judged_on(recording, cluster)
    if measured is None:
        return ()
    burst = AnalyticCostModel(measured, sustained=False)
    return tuple(_layers(recording, ProfiledCostModel(burst, burst, recording)))


def _layers(recording: Recording, cost_model: CostModel) -> Iterator[WholeLayer]:
    results = {entry.point: entry.result for entry in recording.measured if entry.point.suite == "layer"}
    for sizes, dtype in dict.fromkeys((point.sizes, point.word("dtype")) for point in results):
        if dtype not in _PRECISIONS:
            continue
        phases = [phase for phase in PHASES if Point("layer", (dtype, phase), sizes) in results]
        found = {phase: results[Point("layer", (dtype, phase), sizes)] for phase in phases}
        layer = _parts(Point("layer", (dtype, phases[0]), sizes))
        steps = {"forward": layer.forward, "backward": layer.backward}
        peaks = [int(str(result["peak_bytes"])) for result in found.values() if "peak_bytes" in result]
        weights = layer.elements().total * _PRECISIONS[dtype].parameter_dtype.num_bytes
        yield WholeLayer(
            name=" ".join(
                (dtype, *(f"{name} {size}" for name, size in zip(COLUMNS["layer"].sizes, sizes, strict=True)))
            ),
            measured_seconds={phase: float(str(result["seconds"])) for phase, result in found.items()},
            parts_seconds={phase: _seconds(steps[phase], cost_model) for phase in phases},
            measured_bytes=max(peaks, default=None),
            parts_bytes=2 * weights + layer.all_saved_bytes + layer.transient_bytes,
        )


def _seconds(steps: Iterable[Step], cost_model: CostModel) -> float:
    return sum(cost_model.compute(_written(step.compute)).seconds for step in steps if step.compute is not None)


def _written(operation: ComputeOp) -> ComputeOp:
    """Return a product whose result is written, not added to an fp32 buffer; anything else as it is."""
    if isinstance(operation, Gemm) and operation.accumulate:
        return replace(operation, accumulate=False, output_bytes_per_element=operation.input_bytes_per_element)
    return operation


def _parts(point: Point) -> RankLayer:
    """Return the planner's account of a measured layer."""
    block = Block(
        mixer=SelfAttention(
            num_attention_heads=point.size("heads"),
            num_key_value_heads=point.size("kv_heads"),
            head_dim=point.size("head_dim"),
        ),
        feed_forward=DenseFeedForward(
            intermediate_size=point.size("intermediate"), gated=True, activation=Activation.SILU
        ),
    )
    model = ModelSpec(
        name="a measured layer",
        architecture="LlamaForCausalLM",
        hidden_size=point.size("hidden"),
        vocab_size=1,
        tie_word_embeddings=False,
        max_position_embeddings=point.size("tokens"),
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE,
        runs=(BlockRun(block=block, count=1),),
        norm_epsilon=1e-5,
        rope_theta=10000.0,
    )
    batch, tokens = point.size("batch"), point.size("tokens")
    workload = TrainWorkload(seq_len=tokens, global_batch_size=batch, precision=_PRECISIONS[point.word("dtype")])
    sharding = Sharding(tp=1, sequence_parallel=False, micro_batch_size=batch, seq_len=tokens, vocab_divisor=1)
    return shard_layer(build_graph(model, workload).blocks[block], sharding)
