"""vLLM still says of the corpus of mutations what is stored of it, and its sections take the keys that rules know."""

import json
import subprocess

import pytest

from planner.rules.vllm_sections import CONNECTORS, SECTIONS
from tests.corpora.vllm_verdicts import Stored, corpus, stored_verdicts
from tests.frameworks.judge_vllm_corpus import judged
from tests.frameworks.vllm_environment import ROOT, environment, vllm_python

EVERY = 16
"""Of so many commands one is judged again."""

pytestmark = pytest.mark.frameworks


def test_a_sample_is_judged_as_stored() -> None:
    sample = corpus()[::EVERY]
    again = {
        verdict["run"]: Stored(failed_level=verdict["failed_level"], error=verdict["error"])
        for verdict in judged(sample)
    }
    assert again == {mutation.name: stored_verdicts()[mutation.name] for mutation in sample}


def test_keys_and_connectors_are_those_of_vllm() -> None:
    command = [str(vllm_python()), "-m", "tests.frameworks.vllm_sections"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()).stdout
    keys = json.loads(said.splitlines()[-1])
    assert keys.pop("connectors") == sorted(CONNECTORS)
    assert keys == {name: sorted(known) for name, known in SECTIONS.items()}
