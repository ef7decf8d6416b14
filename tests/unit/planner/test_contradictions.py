"""What model, cluster, workload and constraints cannot be together, whatever the layout."""

from dataclasses import replace

import pytest

from planner.blocks import MixtureOfExperts
from planner.contradictions import contradictions
from planner.documents import parse_document
from planner.request import Target
from planner.schema.spec import ConstraintsFile
from planner.specs import BlockRun, ModelSpec
from tests.builders import tiny_dense_model, tiny_request, two_node_cluster
from tests.unit.planner.model_kinds import expert_model, latent_model

DENSE = tiny_dense_model()
EXPERTS = expert_model()


def found(model: ModelSpec, constraints: str, *, target: Target = Target.MEGATRON) -> list[str]:
    """Return every contradiction on 8 GPUs with 16 sequences of 128 tokens."""
    document = parse_document(f"constraints: {constraints}\n", file="spec.yaml")
    data = document.data
    assert isinstance(data, dict)
    pins = ConstraintsFile.model_validate(data["constraints"]).to_constraints()
    request = replace(tiny_request(), constraints=pins, target=target)
    return [str(error) for error in contradictions(model, two_node_cluster(), request, document)]


def test_an_unconstrained_run_contradicts_nothing() -> None:
    for model in (DENSE, EXPERTS, latent_model()):
        for target in (Target.MEGATRON, Target.DEEPSPEED, Target.ANY):
            assert found(model, "{}", target=target) == []


SIZES = "Change a constraint; the cluster and the batch are never changed for you."


@pytest.mark.parametrize(
    ("model", "constraints", "target", "message"),
    [
        (
            DENSE,
            "{ep: 2}",
            Target.MEGATRON,
            "19: constraints.ep: `ep` lays out routed experts, and tiny has none.\nRemove it.",
        ),
        (
            DENSE,
            "{etp: {min: 2}}",
            Target.MEGATRON,
            "20: constraints.etp: `etp` lays out routed experts, and tiny has none.\nRemove it.",
        ),
        (
            EXPERTS,
            "{ep: [3, 5]}",
            Target.MEGATRON,
            ("19: constraints.ep: None of ep 3, 5 divides the routed experts of experts: 16.\nGive a divisor of 16."),
        ),
        (
            EXPERTS,
            "{cp: [3, 256]}",
            Target.MEGATRON,
            (
                "19: constraints.cp: None of cp 3, 256 divides `seq_len` = 128.\n"
                "cp has to divide the tokens of a sequence, which are never changed for you."
            ),
        ),
        (
            DENSE,
            "{cp_kind: [ring, ulysses-ring], cp: [128, 256]}",
            Target.MEGATRON,
            (
                "50: constraints.cp: None of 2 * cp 256, 512 divides `seq_len` = 128.\n"
                "2 * cp has to divide the tokens of a sequence, which are never changed for you."
            ),
        ),
        (
            DENSE,
            "{tp: 2, cp: 2, pp: 4}",
            Target.MEGATRON,
            f"33: constraints.pp: tp 2 * cp 2 * pp 4 = 16 does not divide the number of GPUs = 8.\n{SIZES}",
        ),
        (
            EXPERTS,
            "{ep: 4, etp: 2, pp: 2}",
            Target.MEGATRON,
            f"34: constraints.pp: etp 2 * ep 4 * pp 2 = 16 does not divide the number of GPUs = 8.\n{SIZES}",
        ),
        (
            DENSE,
            "{tp: 2, cp: 2, pp: 1, micro_batch_size: 16}",
            Target.MEGATRON,
            (
                "54: constraints.micro_batch_size: dp 2 * micro_batch_size 16 = 32 does not divide "
                f"`global_batch_size` = 16.\n{SIZES}"
            ),
        ),
        (
            DENSE,
            "{vpp: 2}",
            Target.DEEPSPEED,
            (
                "20: constraints.vpp: DeepSpeed 0.19.8 has no virtual pipeline stages.\n"
                "Remove it, or give target: megatron or any."
            ),
        ),
        (
            EXPERTS,
            "{ep: 2}",
            Target.DEEPSPEED,
            (
                "19: constraints.ep: DeepSpeed 0.19.8 has no expert parallelism.\n"
                "Remove it, or give target: megatron or any."
            ),
        ),
        (
            EXPERTS,
            "{etp: [2, 4]}",
            Target.DEEPSPEED,
            (
                "20: constraints.etp: DeepSpeed 0.19.8 has no tensor parallelism of the experts alone.\n"
                "Remove it, or give target: megatron or any."
            ),
        ),
        (
            DENSE,
            "{sequence_parallel: true}",
            Target.DEEPSPEED,
            (
                "34: constraints.sequence_parallel: DeepSpeed 0.19.8 has no sequence parallelism over tp.\n"
                "Remove it, or give target: megatron or any."
            ),
        ),
        (
            DENSE,
            "{cp_kind: [ring, ulysses-ring]}",
            Target.DEEPSPEED,
            (
                "24: constraints.cp_kind: DeepSpeed 0.19.8 has no context parallelism of kind ring or ulysses-ring.\n"
                "Remove it, or give target: megatron or any."
            ),
        ),
    ],
)
def test_what_no_layout_can_be_is_said_with_its_place(
    model: ModelSpec, constraints: str, target: Target, message: str
) -> None:
    assert found(model, constraints, target=target) == [f"spec.yaml:1:{message}"]


@pytest.mark.parametrize(
    ("model", "constraints", "target"),
    [
        (DENSE, "{ep: 1, etp: [1, 2]}", Target.MEGATRON),
        (DENSE, "{ep: {max: 8}}", Target.MEGATRON),
        (EXPERTS, "{ep: [3, 8]}", Target.MEGATRON),
        (EXPERTS, "{ep: 4, etp: 2, pp: 1}", Target.MEGATRON),
        (DENSE, "{cp_kind: ring, cp: 8}", Target.MEGATRON),
        (DENSE, "{cp_kind: ring, cp: [1, 256]}", Target.MEGATRON),
        (DENSE, "{tp: 2, pp: 1, micro_batch_size: 16}", Target.MEGATRON),
        (DENSE, "{vpp: [1, 2], sequence_parallel: false, cp_kind: [ring, ulysses]}", Target.DEEPSPEED),
        (EXPERTS, "{ep: {min: 1}}", Target.DEEPSPEED),
        (EXPERTS, "{ep: 2, sequence_parallel: true, cp_kind: ring}", Target.ANY),
    ],
)
def test_what_some_layout_can_be_is_taken(model: ModelSpec, constraints: str, target: Target) -> None:
    assert found(model, constraints, target=target) == []


def test_a_degree_has_to_divide_the_experts_of_every_layer() -> None:
    dense, first, last = EXPERTS.runs
    experts = last.block.feed_forward
    assert isinstance(experts, MixtureOfExperts)
    fewer = BlockRun(block=replace(last.block, feed_forward=replace(experts, num_experts=12)), count=1)
    mixed = replace(EXPERTS, runs=(dense, first, fewer))
    assert found(mixed, "{ep: 4}") == []
    assert found(mixed, "{ep: 8}") == [
        (
            "spec.yaml:1:19: constraints.ep: ep 8 does not divide the routed experts of experts: 12 and 16.\n"
            "Give a divisor of 4."
        )
    ]
