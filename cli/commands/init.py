"""`shardwright init`: a commented spec to start from."""

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.schema import schema_name
from cli.named_model import read_named_model
from cli.output import note, write_file
from planner.errors import InputError

EXAMPLES = ("shardwright init", "shardwright init llama.yaml --model llama-3.1-70b --cluster dgx-h100 --nodes 8")

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

# Pin or bound what the search may choose: tp, cp (cp_kind), pp, vpp, dp, ep, etp, zero_stage, micro_batch_size,
# num_microbatches, recompute, sequence_parallel.
# constraints: {{tp: 8, pp: [1, 2, 4], cp: {{max: 4}}, recompute: [none, selective]}}

# Fraction of each GPU's memory that the plan leaves free.
# memory_headroom: 0.05

# Framework that must be able to run the plan: megatron, deepspeed, or any.
# target: megatron
"""

USUAL_SEQ_LEN = 8192
"""Tokens of one sequence, where the model takes so many."""

PLAIN_SCALAR = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the spec.")]
ModelOption = Annotated[str, typer.Option("--model", help="Bundled model, or path of a config.json or its directory.")]
ClusterOption = Annotated[str, typer.Option("--cluster", help="Cluster preset.")]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Number of nodes; else the preset's smallest.", show_default=False)
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file if it is there.")]


def init(
    file: FileArgument = Path("spec.yaml"),
    *,
    model: ModelOption = "llama-3.1-8b",
    cluster: ClusterOption = "dgx-h100",
    nodes: NodesOption = None,
    force: ForceOption = False,
) -> None:
    """Write a commented spec to start from."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{file} is not named as YAML, which `init` writes.", hint="Name it spec.yaml, for example.")
    from profiles.catalogue import load_preset

    reference = model_reference(model, spec=file)
    longest = read_named_model(model, where=f"--model {model}").max_position_embeddings
    preset = load_preset(cluster).to_cluster()
    text = TEMPLATE.format(
        file=file,
        schema=schema_name("spec"),
        model=yaml_scalar(reference),
        seq_len=min(USUAL_SEQ_LEN, longest),
        cluster=preset.name,
        nodes=preset.num_nodes if nodes is None else nodes,
    )
    write_file(file, text, force=force)
    note(f"{file} written. Edit it, then run: shardwright plan {file}")


def model_reference(model: str, *, spec: Path) -> str:
    """Return how a spec names a model: by its bundled name, or by its path as seen from the spec.

    Raises:
        InputError: When there is no such model.
    """
    from planner.bundled import find_bundled, model_names

    if find_bundled(model) is not None:
        return model
    if not Path(model).exists():
        raise InputError(
            f"--model {model} is neither a bundled model nor an existing path.",
            hint=f"Bundled models: {', '.join(model_names())}.",
        )
    return model if Path(model).is_absolute() else os.path.relpath(model, spec.parent)


def yaml_scalar(text: str) -> str:
    """Return text as one YAML scalar; a JSON string is one where a plain scalar would not do."""
    return text if PLAIN_SCALAR.fullmatch(text) else json.dumps(text)
