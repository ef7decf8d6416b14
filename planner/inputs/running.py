"""A layout that runs already: read from its launch script, priced as a plan is."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from planner.documents import load_document
from planner.errors import InputError, Location
from planner.evaluation.described import given_layout
from planner.evaluation.validate import violations
from planner.evaluation.violation import Violation
from planner.frameworks.capabilities import DEEPSPEED
from planner.inputs.load import Inputs, load_inputs
from planner.layout import DRIVE_WEIGHTS, Layout
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.offloading.drive_weights import drive_weights
from planner.offloading.states import is_parted
from planner.offloading.sub_groups import LEAST_GROUPS, dealing, planned_dealing, tensor_elements
from planner.plans.certainty import certainty_of
from planner.plans.plan import Plan, SearchSummary, Status
from planner.ranks.placement import place
from planner.readers.deepspeed import CONFIG_FILE, DeepSpeedJob, read_deepspeed, sub_group_size_of
from planner.readers.deepspeed import layout_of as deepspeed_layout_of
from planner.readers.deepspeed import require_buffers as require_deepspeed_buffers
from planner.readers.deepspeed import workload_of as deepspeed_workload_of
from planner.readers.megatron import layout_of, read_megatron
from planner.readers.megatron_model import model_of
from planner.readers.megatron_workload import workload_of
from planner.readers.named_files import is_regular_file
from planner.requests.request import DEFAULT_MEMORY_HEADROOM, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import TrainWorkload
from planner.schema.model_facts import model_from_facts
from profiles.catalogue import load_preset
from profiles.errors import CatalogueError
from profiles.hardware import Cluster
from profiles.schema import ClusterEntry

_MEGATRON = re.compile(r"\b(?:pretrain_\w+|lora_gpt)\.py\b")
"""Names of Megatron-LM's training programs."""

_VLLM = re.compile(r"\bvllm\s+serve\b")
"""What starts a server."""

LAUNCH_SCRIPTS = ("launch.sh", "job.sbatch")
"""What `plan --out` calls the scripts that start a run."""

FACTS_FLAG, OTHER_MODEL_FLAG = "--model-facts", "--model"
"""Flags by which the training program beside a DeepSpeed configuration is told its model; the second wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a launch script starts.

    Args:
        target: The framework.
        layout: The layout.
        model: The model of Megatron-LM; None for DeepSpeed.
        workload: The training run; None likewise.
        deepspeed: DeepSpeed's configuration and launch line, which may name a file of the model's facts.
    """

    target: Target
    layout: Layout
    model: ModelSpec | None = None
    workload: TrainWorkload | None = None
    deepspeed: DeepSpeedJob | None = None

    def laid_out(self, model: ModelSpec) -> Layout:
        """Return the layout of a model, with the part of its states on the hosts that sub-groups make of the ratio.

        Raises:
            InputError: Sub-groups stay on the GPU that are larger than plans have them, or all do.
        """
        layout, job = self.layout, self.deepspeed
        if job is None or layout.offload is None or not is_parted(layout):
            return layout
        tensors, ranks, ratio = tensor_elements(model), layout.dp * layout.cp, layout.offload.optimizer_fraction
        size, planned = sub_group_size_of(job), planned_dealing(tensors, ranks=ranks, fraction=ratio)
        if size == planned.sub_group_size:
            return layout
        dealt = dealing(tensors, ranks=ranks, sub_group_size=size, ratio=ratio)
        if dealt.num_kept and (dealt.num_kept == dealt.num_groups or size > -(-dealt.elements // LEAST_GROUPS)):
            raise job.error(
                ("zero_optimization", "sub_group_size"),
                f"is {size}, with which ratio {ratio:g} keeps {dealt.num_kept} of {dealt.num_groups} sub-groups on the"
                f" GPU; plans price smaller ones, and none of them on the GPU alone",
                f"Use {planned.sub_group_size}.",
            )
        return replace(layout, offload=replace(layout.offload, optimizer_fraction=dealt.hosted_fraction))

    @property
    def names_model(self) -> bool:
        """Return whether what is started says which model it trains."""
        return self.deepspeed is None or _facts_named(self.deepspeed) is not None


def read_running(path: Path, *, text: str | None = None, config: Path | None = None) -> Running:
    """Return what a launch script of Megatron-LM or DeepSpeed starts.

    A script of DeepSpeed is read together with its configuration. Which model it trains is looked up only where it is
    asked for (`inputs_of`).

    Args:
        path: The script.
        text: Its text, where that is at hand.
        config: DeepSpeed's configuration; without it the `ds_config.json` beside the script.

    Raises:
        InputError: It cannot be read, or says no layout.
    """
    if path.is_dir():
        script = next((path / name for name in LAUNCH_SCRIPTS if is_regular_file(path / name)), None)
        hint = "Name the script in it." if script is None else f"Name the script: {script}"
        raise InputError("This is a directory.", location=Location(file=str(path)), hint=hint)
    text = _text(path) if text is None else text
    if _MEGATRON.search(text):
        job = read_megatron(text, file=str(path))
        return Running(target=Target.MEGATRON, layout=layout_of(job), model=model_of(job), workload=workload_of(job))
    config = path.parent / CONFIG_FILE if config is None else config
    if not config.is_file() and _VLLM.search(text):
        raise InputError(
            "This starts vLLM; training runs are priced here.",
            location=Location(file=str(path)),
            hint="`shardwright validate --cluster NAME` judges a server's memory, `shardwright diff PLAN SCRIPT` holds"
            " it against its serving plan.",
        )
    if not config.is_file():
        raise InputError(
            f"This starts no training program of Megatron-LM, and there is no {CONFIG_FILE} of DeepSpeed beside it.",
            location=Location(file=str(path)),
            hint="Give a script with torchrun .../pretrain_gpt.py, or one with its DeepSpeed configuration beside it.",
        )
    started = read_deepspeed(text, file=str(path), config=_text(config), config_file=str(config))
    return Running(target=Target.DEEPSPEED, layout=deepspeed_layout_of(started), deepspeed=started)


def _facts_named(job: DeepSpeedJob) -> str | None:
    """Return the name of the file of facts that the program builds its model from; None where it takes another."""
    argument = job.launch.flag(FACTS_FLAG)
    if argument is None or job.launch.has(OTHER_MODEL_FLAG) or not argument.values:
        return None
    return argument.values[-1].rsplit("/", 1)[-1]


def preset_named(cluster: str) -> ClusterEntry:
    """Return the preset that the option --cluster names.

    Raises:
        InputError: There is none of this name.
    """
    try:
        return load_preset(cluster)
    except CatalogueError as error:
        raise InputError(f"--cluster {cluster}: {error}", hint="`shardwright clusters` lists them.") from None


def _described(running: Running, script: Path) -> tuple[ModelSpec, TrainWorkload]:
    """Return the model and the training run that a script describes.

    Raises:
        InputError: It names no model, or the file of its facts is damaged or not there.
    """
    job = running.deepspeed
    if running.model is not None and running.workload is not None:
        return running.model, running.workload
    name = None if job is None else _facts_named(job)
    if job is None or name is None:
        raise InputError(
            f"The script names no {FACTS_FLAG}, so it does not say which model it trains.",
            location=Location(file=str(script)),
            hint="Give --spec with a spec of model, cluster and workload.",
        )
    facts = script.parent / name
    if not is_regular_file(facts):
        raise InputError(
            f"The model's facts, `{name}`, do not lie beside the script.",
            location=Location(file=str(script)),
            hint="Copy them there, or give --spec with a spec of model, cluster and workload.",
        )
    return model_from_facts(load_document(facts), name=facts.stem), deepspeed_workload_of(job)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"The file cannot be read: {reason}.", location=Location(file=str(path))) from None


def request_of(
    running: Running, *, workload: TrainWorkload, memory_headroom: float = DEFAULT_MEMORY_HEADROOM
) -> PlanRequest:
    """Return the request that a running layout answers: its own framework, nothing pinned."""
    return PlanRequest(
        workload=workload,
        constraints=Constraints(),
        memory_headroom=memory_headroom,
        target=running.target,
        objective=Objective.STEP_TIME,
    )


def priced(
    layout: Layout, model: ModelSpec, cluster: Cluster, request: PlanRequest
) -> tuple[Plan, tuple[Violation, ...]]:
    """Return a layout as a plan of one, and every rule that it breaks.

    Raises:
        InputError: It is for another number of GPUs.
        profiles.errors.CoverageError: Something has no cost.
    """
    if layout.world_size != cluster.world_size:
        raise InputError(
            f"The layout is for {layout.world_size:,} GPUs, {cluster.name} has {cluster.world_size:,}.",
            hint="Name the cluster that it runs on.",
        )
    planned = given_layout(layout, model, cluster, request)
    plan = Plan(
        model=model,
        cluster=cluster,
        request=request,
        target=request.target,
        status=Status.FEASIBLE,
        objective=request.objective,
        bound=None,
        gap=None,
        search=SearchSummary(considered=1, legal=1, pruned={}, simulated=1, dimensions=()),
        plans=(planned,),
        baseline=None,
        infeasible=None,
        certainty=certainty_of(model, cluster),
    )
    return plan, violations(planned, model, cluster, request)


def require_buffers(running: Running, model: ModelSpec, workload: TrainWorkload) -> None:
    """Refuse a run of DeepSpeed with weights on drives whose buffers are not what plans price for its model.

    Raises:
        InputError: They are not.
    """
    if running.deepspeed is None or running.layout.parameter_offload != DRIVE_WEIGHTS:
        return
    graph = build_graph(model, workload, eager=DEEPSPEED.eager)
    needed = drive_weights(place(model, graph, running.layout, workload, DEEPSPEED))
    require_deepspeed_buffers(running.deepspeed, needed)


def inputs_of(running: Running, *, script: Path, cluster: str | None, spec: Path | None) -> Inputs:
    """Return what a layout is priced with: a spec's inputs, or what its script says on a preset's nodes.

    Args:
        running: What the script starts.
        script: The script, for messages.
        cluster: Name of a cluster preset, if that is how the user says where it runs.
        spec: A spec, if that is.

    Raises:
        InputError: Neither or both say where it runs, or they do not fit the script.
    """
    if (cluster is None) == (spec is None):
        raise InputError(
            "Where the script runs is not said." if spec is None else "--cluster and --spec both name a cluster.",
            location=Location(file=str(script)),
            hint="Give --cluster dgx-h100, or --spec with a spec of model, cluster and workload.",
        )
    if spec is not None:
        inputs = load_inputs(spec)
        request = request_of(running, workload=inputs.request.workload, memory_headroom=inputs.request.memory_headroom)
        require_buffers(running, inputs.model, request.workload)
        return replace(inputs, request=request)
    model, workload = _described(running, script)
    require_buffers(running, model, workload)
    node = preset_named(cluster or "")
    nodes, rest = divmod(running.layout.world_size, node.gpus_per_node)
    if rest:
        raise InputError(
            f"The script starts {running.layout.world_size} GPUs, and a node of {cluster} has {node.gpus_per_node}.",
            location=Location(file=str(script)),
            hint="Name the cluster that it runs on, or describe it in a spec.",
        )
    whole = ClusterEntry.model_validate({"preset": cluster, "nodes": nodes}).to_cluster()
    return Inputs(model=model, cluster=whole, request=request_of(running, workload=workload))
