"""vLLM's own parser takes the benchmark commands of serving plans, and means their load."""

import json
import subprocess
from pathlib import Path

import pytest

from planner.serving_plans.plan import ServePlan
from planner.serving_search.launch import serve_files
from tests.emitted.test_serving_plan_in_bash import A_WORD_A_LINE, AGGREGATED, CLOSED, SPLIT, TWO_NODES, run
from tests.frameworks.vllm_environment import environment, vllm_python
from tests.served import served

pytestmark = pytest.mark.frameworks

PARSE = """\
import json, sys
from vllm.benchmarks.serve import add_cli_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
given = parser.parse_args(json.loads(sys.argv[1]))
names = "request_rate max_concurrency random_input_len random_output_len random_range_ratio goodput"
print(json.dumps({name: getattr(given, name) for name in names.split()}, default=str))
"""


def parsed(folder: Path, plan: ServePlan) -> dict[str, object]:
    """Return what vLLM makes of a plan's benchmark."""
    assert "bench.sh" in serve_files(plan)
    first, second, *arguments = run(folder, plan, "bench.sh", A_WORD_A_LINE)
    assert (first, second) == ("bench", "serve")
    result = subprocess.run(
        [str(vllm_python()), "-c", PARSE, json.dumps(arguments)],
        env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_load_by_the_clock(tmp_path: Path) -> None:
    plan = served(SPLIT, TWO_NODES)
    found = parsed(tmp_path, plan)
    assert found["request_rate"] == pytest.approx(plan.requests_per_second, rel=1e-3)
    assert (found["random_input_len"], found["random_output_len"]) == (1000, 200)
    assert found["goodput"] == ["ttft:500", "tpot:25"]


def test_a_closed_loop(tmp_path: Path) -> None:
    plan = served(AGGREGATED, CLOSED)
    found = parsed(tmp_path, plan)
    assert found["max_concurrency"] == plan.pools[0].pool.settings.max_num_seqs
    assert json.loads(str(found["random_range_ratio"])) == {"input": 0.5, "output": 0}
