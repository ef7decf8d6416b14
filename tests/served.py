"""Small serving specs and their plans, each planned once."""

from functools import cache
from pathlib import Path

from planner.documents import parse_document
from planner.serving_plans.plan import ServePlan
from planner.serving_search.inputs import ServeInputs, read_serve_inputs
from planner.serving_search.search import plan_serving

SMALL = """\
schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}
workload:
  kind: serve
  input: 1000
  output: 200
  slo: {ttft_ms: 500, tpot_ms: 25}
"""


def serve_inputs(text: str = SMALL, *changes: tuple[str, str]) -> ServeInputs:
    """Return what a spec asks for, with texts replaced; each must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return read_serve_inputs(parse_document(text, file="spec.yaml"), base=Path("/nonexistent"))


@cache
def served(*changes: tuple[str, str], solver: str = "mathopt", text: str = SMALL) -> ServePlan:
    """Return the plan of a spec with texts replaced."""
    inputs = serve_inputs(text, *changes)
    return plan_serving(inputs.model, inputs.clusters, inputs.request, solver=solver)
