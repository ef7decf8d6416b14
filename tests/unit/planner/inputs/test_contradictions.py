"""What model, cluster, workload and constraints cannot be together, whatever the layout."""

from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.inputs.contradictions import contradictions
from planner.models.blocks import MixtureOfExperts
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Bounds, Objective, Target
from planner.schema.spec import ConstraintsFile
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
            "{parameter_offload: true, optimizer_offload: [0, 0.5]}",
            Target.DEEPSPEED,
            (
                "34: constraints.parameter_offload: `parameter_offload` asks for weights on the hosts, and"
                " `optimizer_offload` forbids all states there.\nAdd 1 to `optimizer_offload`, or leave it out."
            ),
        ),
        (
            DENSE,
            "{offloaded_layers: [4, 6]}",
            Target.MEGATRON,
            (
                "33: constraints.offloaded_layers: `offloaded_layers` allows none of 0 to 3: of 4 layers at least the"
                " last keeps its activations on the GPU.\nAllow 3 or fewer."
            ),
        ),
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
        (DENSE, "{offloaded_layers: {min: 3}}", Target.MEGATRON),
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


@pytest.mark.parametrize(
    ("changes", "tokens", "message"),
    [
        (
            {"objective": Objective.FEWEST_NODES},
            1_000_000,
            (
                "`objective` = fewest-nodes needs a deadline that the nodes have to meet.",
                "Add deadline_days: 30, or another number of days.",
            ),
        ),
        (
            {"objective": Objective.ENERGY},
            None,
            (
                "`objective` = energy speaks of a whole run, and the workload has no token budget.",
                "Add tokens_to_train to the workload, such as 15T.",
            ),
        ),
        (
            {"deadline_days": 3.0},
            None,
            (
                "`deadline_days` speaks of a whole run, and the workload has no token budget.",
                "Add tokens_to_train to the workload, such as 15T.",
            ),
        ),
        (
            {"node_counts": Bounds(minimum=3)},
            None,
            (
                "`node_counts` allows none of the 1 to 2 nodes of the cluster.",
                "The cluster gives the most nodes that may be chosen: raise cluster.nodes, or allow fewer.",
            ),
        ),
    ],
)
def test_what_an_objective_needs_is_said(
    changes: dict[str, object], tokens: int | None, message: tuple[str, str]
) -> None:
    asked = tiny_request()
    workload = replace(asked.workload, tokens_to_train=tokens)
    request = replace(asked, workload=workload, **changes)  # type: ignore[arg-type]
    document = parse_document("schema: 1\n", file="spec.yaml")
    (error,) = contradictions(DENSE, two_node_cluster(), request, document)
    assert (error.message, error.hint) == message


def test_too_many_numbers_of_nodes_are_refused_and_a_few_are_not() -> None:
    document = parse_document("objective: step-time\n", file="spec.yaml")
    cluster = two_node_cluster(num_nodes=512)
    free = replace(tiny_request(), node_counts=Bounds(minimum=1))
    (error,) = contradictions(DENSE, cluster, free, document)
    assert str(error).endswith(
        "512 numbers of nodes are allowed; at most 256 are searched.\n"
        "List those that you could use, such as node_counts: [64, 128, 256, 512]."
    )
    few = replace(free, node_counts=Bounds(allowed=(64, 512)))
    assert list(contradictions(DENSE, cluster, few, document)) == []


def test_pinned_sizes_need_only_fit_some_number_of_nodes() -> None:
    document = parse_document("constraints: {tp: 4, dp: 1, pp: 1}\n", file="spec.yaml")
    pins = {name: Bounds(allowed=(value,)) for name, value in {"tp": 4, "cp": 1, "pp": 1, "dp": 1}.items()}
    asked = tiny_request()
    pinned = replace(asked, constraints=replace(asked.constraints, degrees=pins))
    (error,) = contradictions(DENSE, two_node_cluster(), pinned, document)
    assert "is not the number of GPUs = 8" in str(error)
    free = replace(pinned, node_counts=Bounds(minimum=1))
    assert list(contradictions(DENSE, two_node_cluster(), free, document)) == []
