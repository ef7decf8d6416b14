"""vLLM and DeepSpeed themselves take what is emitted for offloaded inference, and mean the plan."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from planner.inference_offload.emit import DEEPSPEED_FILE, emit_offload
from planner.inference_offload.plan import OffloadPlan
from planner.inference_offload.request import DRIVE, Target
from tests.frameworks.deepspeed_environment import run_beside_deepspeed
from tests.frameworks.vllm_environment import Job, ask_vllm
from tests.offloaded import offloaded
from tests.unit.planner.inference_offload.test_emit import lying

pytestmark = pytest.mark.frameworks

OPT: Mapping[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 7168,
    "num_hidden_layers": 48,
    "num_attention_heads": 56,
    "ffn_dim": 28672,
    "word_embed_proj_dim": 7168,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}


def test_vllm_takes_the_configuration() -> None:
    plan = offloaded("dense")
    chosen = plan.of(Target.VLLM)
    assert chosen is not None
    text = emit_offload(plan, Target.VLLM)["offload.yaml"]
    lines = [line for line in text.splitlines() if not line.startswith("model:")]
    job = Job(arguments=("served", "--config", "offload.yaml"), config_text="\n".join(lines) + "\n", model=OPT)
    bad = Job(
        arguments=("served", "--config", "offload.yaml"),
        config_text=("\n".join(lines) + "\n").replace("offload-num-in-group: ", "offload-num-in-group: 9"),
        model=OPT,
    )
    found, wrong = ask_vllm([job, bad])
    assert (found.failed_level, found.error) == ("", "")
    assert found.resolved["max_num_seqs"] == chosen.batch_size
    assert found.resolved["max_model_len"] == 544
    assert "offload_num_in_group" in wrong.error


@pytest.mark.parametrize("drive", [False, True], ids=["cpu", "nvme"])
def test_deepspeed_takes_the_configuration(*, drive: bool) -> None:
    plan: OffloadPlan = offloaded("dense")
    if drive:
        plan = lying(plan, Target.DEEPSPEED, DRIVE)
    chosen = plan.of(Target.DEEPSPEED)
    assert chosen is not None
    config = json.loads(emit_offload(plan, Target.DEEPSPEED)[DEEPSPEED_FILE])
    (read,) = run_beside_deepspeed("tests.frameworks.deepspeed_oracle", [{"config": config, "world": 1}], jobs=1)
    assert read["error"] == ""
    assert read["ignored"] == []
    assert read["zero_stage"] == 3
    assert read["batch"] == [chosen.batch_size, chosen.batch_size, 1]
    assert read["offload"] is None
    assert read["offload_param"] == ["nvme" if drive else "cpu", True]
    assert read["buckets"][1:] == [plan.facts.layer_elements, 2 * plan.facts.layer_elements]
