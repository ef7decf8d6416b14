from pathlib import Path

import pytest

from planner.errors import InputError
from planner.inputs.load import Inputs, load_inputs
from planner.requests.request import Bounds
from planner.requests.workload import Precision

SPEC = """\
schema: 1
model: llama-3.1-70b
cluster: {preset: dgx-h100, nodes: 8}
workload: {kind: train, seq_len: 8192, global_batch_size: 512, precision: bf16}
"""

INLINE_CLUSTER = (
    "{gpu: h100-sxm-80gb, gpus_per_node: 8, nodes: 1, host_ram: 2TiB, nics: {count: 8, bandwidth: 400Gb/s}}"
)


def load(folder: Path, text: str = SPEC, overrides: tuple[str, ...] = ()) -> Inputs:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return load_inputs(folder / "spec.yaml", overrides)


def error_of(folder: Path, text: str = SPEC, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_smallest_spec_loads(tmp_path: Path) -> None:
    inputs = load(tmp_path)
    assert (inputs.model.name, inputs.model.num_layers, inputs.model.hidden_size) == ("llama-3.1-70b", 80, 8192)
    assert (inputs.cluster.name, inputs.cluster.world_size) == ("dgx-h100", 64)
    assert inputs.request.workload.precision is Precision.BF16


def test_every_part_may_be_a_file_beside_the_spec(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "cluster.yaml").write_text("schema: 1\npreset: dgx-a100\nnodes: 2\n", encoding="utf-8")
    (parts / "workload.json").write_text(
        '{"kind": "train", "seq_len": 2048, "global_batch_size": 64, "precision": "bf16"}', encoding="utf-8"
    )
    (parts / "pins.yaml").write_text("tp: 8\n", encoding="utf-8")
    text = (
        "schema: 1\nmodel: llama-3.1-8b\ncluster: parts/cluster.yaml\nworkload: parts/workload.json\n"
        "constraints: parts/pins.yaml\n"
    )
    inputs = load(tmp_path, text)
    assert inputs.cluster.world_size == 16
    assert inputs.request.workload.seq_len == 2048
    assert inputs.request.constraints.degrees == {"tp": Bounds(allowed=(8,))}
    # An override reaches into the file.
    assert load(tmp_path, text, ("cluster.nodes=4", "workload.seq_len=4096")).cluster.world_size == 32


def test_an_error_in_a_part_points_at_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("preset: dgx-a100\nnodes: many\n", encoding="utf-8")
    text = SPEC.replace("{preset: dgx-h100, nodes: 8}", "cluster.yaml").replace("8192", "x")
    assert error_of(tmp_path, text) == (
        'cluster.yaml:2:8: cluster.nodes: `nodes` = "many" is not a whole number.\nGive a whole number.\n'
        'spec.yaml:4:34: workload.seq_len: `seq_len` = "x" is not a whole number.\nGive a whole number.'
    )


def test_a_preset_may_be_named_without_a_mapping(tmp_path: Path) -> None:
    text = SPEC.replace("{preset: dgx-h100, nodes: 8}", "dgx-h100")
    assert load(tmp_path, text).cluster.world_size == 8
    assert load(tmp_path, text, ("cluster.nodes=3",)).cluster.world_size == 24


def test_a_cluster_may_stand_inline(tmp_path: Path) -> None:
    assert load(tmp_path, SPEC.replace("{preset: dgx-h100, nodes: 8}", INLINE_CLUSTER)).cluster.world_size == 8


def test_overrides_apply_in_order_and_are_blamed_by_their_text(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("cluster.nodes=2", "cluster.nodes=4")).cluster.num_nodes == 4
    assert error_of(tmp_path, overrides=("workload.seq_len=long",)) == (
        '--set workload.seq_len=long: workload.seq_len: `seq_len` = "long" is not a whole number.\nGive a whole number.'
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{preset: dgx-h100, nodes: 8}",
            "nothing.yaml",
            (
                'spec.yaml:3:10: cluster: "nothing.yaml" is neither a preset nor a file.\n'
                "Cluster preset 'nothing.yaml' is not in the catalogue. Known: "
            ),
        ),
        (
            "{kind: train, seq_len: 8192, global_batch_size: 512, precision: bf16}",
            "train.yaml",
            (
                'spec.yaml:4:11: workload: "train.yaml" is not a file.\n'
                "Give the workload inline, or the path of its file, relative to the spec."
            ),
        ),
        ("llama-3.1-70b", "7", "spec.yaml:2:8: model: `model` = 7 is neither a name nor a mapping."),
        (
            "{preset: dgx-h100, nodes: 8}",
            "8",
            "spec.yaml:3:10: cluster: `cluster` = 8 is not a mapping.\nGive a mapping.",
        ),
        (
            "nodes: 8",
            "node: 8",
            "spec.yaml:3:29: cluster.node: `node` is not a known key.\nDid you mean `nodes`? Known keys: preset, ",
        ),
        (
            "nodes: 8",
            "nodes: 8, host_ram: 3T",
            "spec.yaml:3:49: cluster.host_ram: '3T' is not a size: write for example 80GiB, 2TB.",
        ),
        (
            "bf16",
            "fp8-mxfp8",
            (
                "spec.yaml:4:75: workload.precision: `precision` = fp8-mxfp8 does not run on h100-sxm-80gb: MXFP8 "
                "needs compute capability 10.x (Blackwell data-centre GPUs).\n"
                "Usable on this GPU: bf16, fp16, fp8-delayed, fp8-tensorwise, fp8-blockwise."
            ),
        ),
        (
            "precision: bf16}",
            "precision: bf16, tokens_to_train: 1T}\nobjective: cost",
            (
                "spec.yaml:5:12: objective: `objective` = cost needs the price of a GPU, which the cluster does not "
                "give.\nAdd price_per_gpu_hour to the cluster."
            ),
        ),
    ],
)
def test_what_cannot_be_planned_is_said_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert error_of(tmp_path, SPEC.replace(old, new)).startswith(message)


def test_a_learned_table_of_positions_ends_and_a_rotation_does_not(tmp_path: Path) -> None:
    longer = SPEC.replace("8192", "262144")
    message = error_of(tmp_path, longer.replace("llama-3.1-70b", "gpt3-175b"))
    assert message == (
        "spec.yaml:4:34: workload.seq_len: `seq_len` = 262144 is longer than the table of positions of gpt3-175b: "
        "max_position_embeddings = 2048.\n"
        "Shorten it, or describe the model with the max_position_embeddings it will have."
    )
    (tmp_path / "spec.yaml").write_text(longer)
    assert load_inputs(tmp_path / "spec.yaml").request.workload.seq_len == 262144


@pytest.mark.parametrize(
    ("gpu", "precision", "reason"),
    [
        ("v100-sxm-32gb", "bf16", "it has no bf16 matrix units"),
        ("a100-sxm-80gb", "fp8-delayed", "it has no fp8 matrix units"),
        ("l40s", "fp8-blockwise", "block scaling needs an NVIDIA GPU of compute capability 9.0 or more"),
        ("mi300x", "fp8-mxfp8", "MXFP8 needs CDNA 4"),
        ("mi300x", "fp8-blockwise", "block scaling needs an NVIDIA GPU of compute capability 9.0 or more"),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused(tmp_path: Path, gpu: str, precision: str, reason: str) -> None:
    text = SPEC.replace("bf16", f"{precision}, attention_kernel: unfused")
    found = error_of(
        tmp_path, text, ("cluster=" + INLINE_CLUSTER.replace("h100-sxm-80gb", gpu), "cluster.nvlink_domain=1")
    )
    assert found.startswith("spec.yaml:4:75: workload.precision: ")
    assert f": {reason}.\nUsable on this GPU: " in found


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [("b200", "fp8-mxfp8"), ("mi355x", "fp8-mxfp8"), ("l40s", "fp8-delayed"), ("h100-sxm-80gb", "fp8-blockwise")],
)
def test_a_precision_that_the_gpu_has_is_taken(tmp_path: Path, gpu: str, precision: str) -> None:
    cluster = INLINE_CLUSTER.replace("h100-sxm-80gb", gpu)
    inputs = load(tmp_path, SPEC.replace("bf16", precision), (f"cluster={cluster}", "cluster.nvlink_domain=1"))
    assert inputs.request.workload.precision == precision


def test_flash_attention_is_refused_on_volta(tmp_path: Path) -> None:
    cluster = INLINE_CLUSTER.replace("h100-sxm-80gb", "v100-sxm-32gb")
    assert error_of(tmp_path, SPEC.replace("bf16", "fp16"), (f"cluster={cluster}",)) == (
        "spec.yaml:4:11: workload.attention_kernel: `attention_kernel` = flash does not run on v100-sxm-32gb: it needs "
        "compute capability 8.0 (Ampere).\nGive attention_kernel: unfused."
    )


HINT = "Change a constraint; the cluster and the batch are never changed for you."


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("{tp: 3}", "5:19: constraints.tp: tp 3 does not divide the number of GPUs = 64."),
        ("{tp: 8, pp: 16}", "5:26: constraints.pp: tp 8 * pp 16 = 128 does not divide the number of GPUs = 64."),
        (
            "{tp: 8, cp: 1, pp: 2, dp: 2}",
            "5:40: constraints.dp: tp 8 * cp 1 * pp 2 * dp 2 = 32 is not the number of GPUs = 64.",
        ),
        (
            "{micro_batch_size: 3}",
            "5:33: constraints.micro_batch_size: micro_batch_size 3 does not divide `global_batch_size` = 512.",
        ),
        (
            "{tp: 8, cp: 1, pp: 4, micro_batch_size: 512}",
            (
                "5:54: constraints.micro_batch_size: dp 2 * micro_batch_size 512 = 1024 does not divide "
                "`global_batch_size` = 512."
            ),
        ),
        (
            "{dp: 2, micro_batch_size: 1, num_microbatches: 128}",
            (
                "5:61: constraints.num_microbatches: dp 2 * micro_batch_size 1 * num_microbatches 128 = 256 is not "
                "`global_batch_size` = 512."
            ),
        ),
    ],
)
def test_pinned_sizes_that_contradict_one_another_are_refused(tmp_path: Path, constraints: str, message: str) -> None:
    assert error_of(tmp_path, f"{SPEC}constraints: {constraints}\n") == f"spec.yaml:{message}\n{HINT}"


@pytest.mark.parametrize(
    "constraints",
    [
        "{tp: 8, pp: 8}",
        "{tp: 8, pp: 2, dp: 2}",
        "{tp: 8, cp: 2, pp: 2, dp: 2}",
        "{tp: [3, 8]}",
        "{dp: 2, micro_batch_size: 1, num_microbatches: 256}",
    ],
)
def test_pinned_sizes_that_just_fit_are_taken(tmp_path: Path, constraints: str) -> None:
    assert load(tmp_path, f"{SPEC}constraints: {constraints}\n").cluster.world_size == 64


def test_a_misspelt_preset_is_the_only_complaint(tmp_path: Path) -> None:
    found = error_of(tmp_path, SPEC.replace("preset", "presett"))
    assert found.startswith(
        "spec.yaml:3:11: cluster.presett: `presett` is not a known key.\nDid you mean `preset`? Known keys: preset, "
    )
    assert found.count("spec.yaml:") == 1


def test_what_misses_beside_another_unknown_key_is_still_said(tmp_path: Path) -> None:
    assert "`gpu` is missing in `cluster`." in error_of(tmp_path, SPEC.replace("preset", "zzz"))


def test_a_name_that_is_not_in_the_catalogue_is_said_once(tmp_path: Path) -> None:
    assert error_of(tmp_path, overrides=("cluster.gpu=l40",)) == (
        "--set cluster.gpu=l40: cluster.gpu: GPU 'l40' is not in the catalogue. Nearest: l40s."
    )


def test_an_empty_part_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("")
    assert error_of(tmp_path, SPEC.replace("{preset: dgx-h100, nodes: 8}", "cluster.yaml")) == (
        "cluster.yaml:1:1: The file is empty.\nDescribe the cluster in it."
    )


def test_an_option_is_blamed_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    with pytest.raises(InputError) as caught:
        load_inputs(tmp_path / "spec.yaml", ("objective=step-time",), options={"objective": "cost"})
    assert str(caught.value.location) == "--objective cost: objective"


def test_a_field_of_a_bundled_model_cannot_be_set(tmp_path: Path) -> None:
    assert error_of(tmp_path, overrides=("model.hidden_size=1",)) == (
        'spec.yaml:2:8: model: "llama-3.1-70b" is not the path of a model, so no field of it can be set.\n'
        "Override the whole model, or describe it in a file."
    )
