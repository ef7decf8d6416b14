"""`shardwright init`: a commented spec to start from."""

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.schema import schema_name
from cli.completion import completing, presets
from cli.named_model import read_named_model
from cli.output import note, write_file
from planner.errors import InputError

EXAMPLES = (
    "shardwright init",
    "shardwright init llama.yaml --model llama-3.1-70b --cluster dgx-h100 --nodes 8",
    "shardwright init --serve",
)

TEMPLATE = """\
# What to plan. Run it with `shardwright plan {file}`.
# Editors check it by a schema that `shardwright schema --out .` writes beside it:
# yaml-language-server: $schema={schema}
schema: 1

# A bundled model (`shardwright models` lists them), the path of a Hugging Face config.json or of its directory,
# or the model's own fields.
model: {model}

# Equal nodes of a preset (`shardwright clusters` lists them), or GPUs, links and prices of your own.
cluster: {{preset: {cluster}, nodes: {nodes}}}

workload:
  kind: train
  seq_len: {seq_len}
  # Sequences of one optimizer step. It is yours: no plan ever changes it.
  global_batch_size: 128
  # bf16, fp16, fp8-delayed, fp8-tensorwise, fp8-blockwise or fp8-mxfp8
  precision: bf16
  # With a token budget the plan gives days, and with a price the cost.
  # tokens_to_train: 1000000000000
  # How long the documents in the sequences are; or histogram: {{512: 0.3, 4096: 0.7}}, or file: lengths.csv.
  # documents: {{packing: packed, distribution: lognormal, mean: 1200, sigma: 1.1}}
  # With routed experts: the tokens of the busiest rank over the mean of all ranks.
  # routing_skew: 1.2
  # Or which experts tokens choose: a file of counts, zipf:1.0, lognormal:0.5 or uniform. Counts of the checkpoint that
  # the run starts from also say in which order its experts are best written; reorder: false leaves them as they are.
  # routing: {{histogram: counts.json}}

# Pin or bound what the search may choose: tp, cp (cp_kind), pp, vpp, dp, ep, etp, zero_stage, micro_batch_size,
# num_microbatches, recompute, sequence_parallel.
# constraints: {{tp: 8, pp: [1, 2, 4], cp: {{max: 4}}, recompute: [none, selective]}}

# Fraction of each GPU's memory that the plan leaves free.
# memory_headroom: 0.05

# Framework that must be able to run the plan: megatron, deepspeed, or any.
# target: megatron
"""

SERVE_TEMPLATE = """\
# What to serve. Plan it with `shardwright plan {file}`.
# Editors check it by a schema that `shardwright schema --out .` writes beside it:
# yaml-language-server: $schema={schema}
schema: 1

# A bundled model (`shardwright models` lists them), the path of a Hugging Face config.json or of its directory,
# or the model's own fields.
model: {model}
# What engines load, where they find it elsewhere: a repository or a path on their nodes.
# served_model: org/model

# Equal nodes of a preset (`shardwright clusters` lists them); with several kinds of GPU, clusters: and a list.
cluster: {{preset: {cluster}, nodes: {nodes}}}

workload:
  kind: serve
  # Tokens: a number, {{min: 500, max: 4000}} evenly, or lognormal {{mean: 1800, sigma: 0.8, max: 16000}}.
  input: {input_len}
  output: {output_len}
  # Recorded requests instead of input and output: CSV or JSON Lines with arrival, input_tokens, output_tokens.
  # trace: requests.csv
  # poisson (burstiness 1; lower comes in bursts), closed-loop (concurrency), offline (num_requests) or trace
  arrivals: poisson
  # The load; left out, as much as the GPUs bear.
  # requests_per_second: 10
  # TTFT: from the arrival at the engine to the first token. TPOT: (E2E - TTFT) / (output tokens - 1).
  # percentile: each target is kept by so many percent of the requests; attainment: all of them at once by such a part.
  slo: {{ttft_ms: 1000, tpot_ms: 50, percentile: 90}}
  # A beginning that prompts share, and the part of the requests that find it in the cache.
  # prefix: {{tokens: 512, hit_fraction: 0.8}}
  # bf16, fp8, fp8_block, int8, int4, nvfp4 or mxfp4, as the files of the model are; nothing lossy is chosen for you.
  # quantization: bf16
  # kv_cache_dtype: bfloat16
  # Which experts tokens choose, of a mixture: a file of counts, or an assumption as zipf:1.0 or lognormal:0.5.
  # routing: {{histogram: counts.json}}

# A smaller model of the same vocabulary that may guess tokens ahead, and the part of its guesses that is taken.
# speculative: {{draft: llama-3.2-1b, acceptance: 0.7}}

# Pin or bound what the search may choose: tp, pp, dp, dcp, expert_parallel, max_num_seqs, max_num_batched_tokens,
# num_speculative_tokens, redundant_experts, split (allowed, never, only), mixed, max_price_per_hour, max_watts.
# constraints: {{tp: [4, 8], split: never}}

# goodput, or for a load that is given: fewest-gpus, cost
# objective: goodput
"""

USUAL_INPUT, USUAL_OUTPUT = 2048, 256
"""Tokens of a prompt and of an answer, where the model takes so many."""

USUAL_SEQ_LEN = 8192
"""Tokens of one sequence, where the model takes so many."""

PLAIN_SCALAR = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the spec.")]
ModelOption = Annotated[str, typer.Option("--model", help="Bundled model, or path of a config.json or its directory.")]
ClusterOption = Annotated[str, typer.Option("--cluster", help="Cluster preset.", autocompletion=completing(presets))]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Number of nodes; else the preset's smallest.", show_default=False)
]
ServeOption = Annotated[bool, typer.Option("--serve", help="A spec of servers instead of a training run.")]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file if it is there.")]


def init(
    file: FileArgument = Path("spec.yaml"),
    *,
    model: ModelOption = "llama-3.1-8b",
    cluster: ClusterOption = "dgx-h100",
    nodes: NodesOption = None,
    serve: ServeOption = False,
    force: ForceOption = False,
) -> None:
    """Write a commented spec to start from."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{file} is not named as YAML, which `init` writes.", hint="Name it spec.yaml, for example.")
    from profiles.catalogue import load_preset

    longest = read_named_model(model, where=f"--model {model}").max_position_embeddings
    reference = model_reference(model, spec=file)
    preset = load_preset(cluster).to_cluster()
    template = SERVE_TEMPLATE if serve else TEMPLATE
    text = template.format(
        file=file,
        schema=schema_name("spec"),
        model=yaml_scalar(reference),
        seq_len=min(USUAL_SEQ_LEN, longest),
        input_len=min(USUAL_INPUT, longest // 2),
        output_len=min(USUAL_OUTPUT, longest // 2),
        cluster=preset.name,
        nodes=preset.num_nodes if nodes is None else nodes,
    )
    write_file(file, text, force=force)
    note(f"{file} written. Edit it, then run: shardwright plan {file}")


def model_reference(model: str, *, spec: Path) -> str:
    """Return how a spec names a model that there is: by its bundled name, or by its path as seen from the spec."""
    from planner.models.bundled import find_bundled

    if find_bundled(model) is not None:
        return model
    return model if Path(model).is_absolute() else os.path.relpath(model, spec.parent)


def yaml_scalar(text: str) -> str:
    """Return text as one YAML scalar; a JSON string is one where a plain scalar would not do."""
    return text if PLAIN_SCALAR.fullmatch(text) else json.dumps(text)
