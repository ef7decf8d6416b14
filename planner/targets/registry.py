"""The frameworks that plans can be written for: what each can say, its files, and how they read back.

Search, launch and command line ask here and know no framework by name. `target: any` has no entry: its plans are held
against no framework's limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from planner.emit import deepspeed, megatron
from planner.emit.deepspeed_limits import TARGET as DEEPSPEED_TITLE
from planner.emit.deepspeed_limits import require_layout as require_deepspeed_layout
from planner.emit.deepspeed_limits import require_model as require_deepspeed_model
from planner.emit.deepspeed_limits import require_workload as require_deepspeed_workload
from planner.emit.megatron_expert_order import names_order
from planner.emit.megatron_limits import TARGET as MEGATRON_TITLE
from planner.emit.megatron_limits import require_model as require_megatron_model
from planner.emit.megatron_limits import require_workload as require_megatron_workload
from planner.emit.megatron_position_limits import written_model
from planner.errors import NotExpressibleError
from planner.experts.emit import MEGATRON_FILE
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.readers.deepspeed import layout_of_files
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import Target
from planner.requests.workload import Precision, TrainWorkload
from profiles.catalogue import load_preset
from profiles.hardware import Cluster


class Framework(Protocol):
    """What search, launch and emit need of a target."""

    @property
    def title(self) -> str:
        """Return its name with the version that was checked."""

    def require_expressible(
        self, model: ModelSpec, workload: TrainWorkload, layout: Layout | None, cluster: Cluster
    ) -> None:
        """Raise `NotExpressibleError` for what the framework cannot say.

        Args:
            model: The model.
            workload: The run.
            layout: The layout; None asks only about what no layout can change.
            cluster: The cluster.
        """

    def launch_file_names(self, workload: TrainWorkload, cluster: Cluster) -> tuple[str, ...]:
        """Return the name of every file that starts `workload` on a cluster, whatever its layout turns out to be."""

    def emit(self, plan: Plan, index: int) -> Mapping[str, str]:
        """Return the text of every file that starts the layout at `index` of the plan, by name."""

    def read_back(self, files: Mapping[str, str]) -> Mapping[str, Layout]:
        """Return the layout that each script among the emitted files says, by the script's name."""


@dataclass(frozen=True, slots=True)
class Megatron:
    """Megatron-LM."""

    title: str = MEGATRON_TITLE

    def require_expressible(
        self, model: ModelSpec, workload: TrainWorkload, layout: Layout | None, cluster: Cluster
    ) -> None:
        """Raise `NotExpressibleError` for what the flags cannot say."""
        if layout is None:
            require_megatron_model(written_model(model, workload))
            for device, _ in cluster.device_counts:
                require_megatron_workload(workload, device)
        else:
            megatron.require_expressible(model, workload, layout, cluster)

    def launch_file_names(self, workload: TrainWorkload, cluster: Cluster) -> tuple[str, ...]:  # noqa: ARG002 - of the protocol
        """Return the names of both scripts, of the order of experts if there may be one, and of the adapter program."""
        scripts: tuple[str, ...] = (megatron.LAUNCH_SCRIPT, megatron.BATCH_SCRIPT)
        if names_order(workload):
            scripts = (*scripts, MEGATRON_FILE)
        return scripts if workload.lora is None else (*scripts, megatron.LORA_PROGRAM)

    def emit(self, plan: Plan, index: int) -> Mapping[str, str]:
        """Return both scripts, and the adapter program if it is needed."""
        return megatron.emit_megatron(plan, index=index)

    def read_back(self, files: Mapping[str, str]) -> Mapping[str, Layout]:
        """Return the layout that each of the two scripts says."""
        scripts = (megatron.LAUNCH_SCRIPT, megatron.BATCH_SCRIPT)
        return {name: layout_of(read_megatron(files[name], file=name)) for name in scripts}


@dataclass(frozen=True, slots=True)
class DeepSpeed:
    """DeepSpeed, with the training program that is shipped beside its files."""

    title: str = DEEPSPEED_TITLE

    def require_expressible(
        self, model: ModelSpec, workload: TrainWorkload, layout: Layout | None, cluster: Cluster
    ) -> None:
        """Raise `NotExpressibleError` for what the configuration and the training program cannot say."""
        require_deepspeed_model(model)
        require_deepspeed_workload(workload)
        if layout is not None:
            require_deepspeed_layout(layout, model, workload, cluster)

    def launch_file_names(self, workload: TrainWorkload, cluster: Cluster) -> tuple[str, ...]:  # noqa: ARG002 - of the protocol
        """Return the names of its files, the same for every run on a cluster."""
        return deepspeed.file_names(cluster)

    def emit(self, plan: Plan, index: int) -> Mapping[str, str]:
        """Return configuration, model facts, training program and scripts."""
        return deepspeed.emit_deepspeed(plan, index=index)

    def read_back(self, files: Mapping[str, str]) -> Mapping[str, Layout]:
        """Return the layout that each script says together with the configuration."""
        return {name: layout_of_files(files, script=name) for name in (deepspeed.LAUNCH_SCRIPT, deepspeed.BATCH_SCRIPT)}


FRAMEWORKS: Mapping[Target, Framework] = {Target.MEGATRON: Megatron(), Target.DEEPSPEED: DeepSpeed()}
"""The frameworks that files can be written for."""

USUAL_SEQ_LEN = 4096
"""Tokens of a sequence in the run that `targets_taking` asks about."""


def targets_taking(model: ModelSpec) -> tuple[Target, ...]:
    """Return the frameworks that some run of a model can be written for: bf16 pretraining on DGX H100."""
    workload = TrainWorkload(
        seq_len=min(USUAL_SEQ_LEN, model.max_position_embeddings), global_batch_size=8, precision=Precision.BF16
    )
    cluster = load_preset("dgx-h100").to_cluster()
    found: list[Target] = []
    for target, framework in FRAMEWORKS.items():
        try:
            framework.require_expressible(model, workload, None, cluster)
        except NotExpressibleError:
            continue
        found.append(target)
    return tuple(found)


def framework_of(target: Target) -> Framework | None:
    """Return the framework that a target names; None for `any`, and for those that no plan can be written for yet."""
    return FRAMEWORKS.get(target)
