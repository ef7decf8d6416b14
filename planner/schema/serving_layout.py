"""The file form of a serving layout, both ways: what `emit` takes to write vLLM's files."""

import json
from typing import Annotated

from pydantic import Field

from planner.documents import Document
from planner.schema.strict import Strict
from planner.schema.translate import validated
from planner.serving_plans.layout import (
    Draft,
    EngineSettings,
    EngineShape,
    Executor,
    Pool,
    Role,
    ServingLayout,
    check_layout,
)

Positive = Annotated[int, Field(ge=1, le=1 << 40)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Word = Annotated[str, Field(min_length=1, max_length=512)]


class DraftFile(Strict):
    """Speculative decoding by a smaller model."""

    model: Word
    num_tokens: Positive
    tp: Positive = 1


class ShapeFile(Strict):
    """How one engine lies on its GPUs."""

    tp: Positive
    pp: Positive = 1
    dp: Positive = 1
    pcp: Positive = 1
    dcp: Positive = 1
    expert_parallel: bool = False


class SettingsFile(Strict):
    """What one engine is told, beside its shape."""

    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    max_model_len: Positive
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_memory_bytes: Positive | None = None
    block_size: Positive | None = None
    kv_cache_dtype: Word = "auto"
    dtype: Word = "auto"
    quantization: Word | None = None
    chunked_prefill: bool = True
    prefix_caching: bool = True
    redundant_experts: Annotated[int, Field(ge=0)] | None = None
    draft: DraftFile | None = None


class PoolFile(Strict):
    """Equal engines with one role."""

    name: Name
    role: Role = Field(default=Role.BOTH, strict=False)
    replicas: Positive
    shape: ShapeFile
    settings: SettingsFile
    gpu: Word
    gpus_per_node: Positive


class ServingLayoutFile(Strict):
    """Everything that is started."""

    schema_version: Annotated[int, Field(ge=1, le=1)]
    target: Annotated[str, Field(pattern="^vllm$")]
    model: Word
    pools: Annotated[list[PoolFile], Field(min_length=1, max_length=64)]
    executor: Executor = Field(default=Executor.MULTIPROCESSING, strict=False)
    connector: Word | None = None

    def to_layout(self) -> ServingLayout:
        """Return the layout."""
        return ServingLayout(
            model=self.model,
            pools=tuple(_pool(pool) for pool in self.pools),
            executor=self.executor,
            connector=self.connector,
        )


def _pool(pool: PoolFile) -> Pool:
    settings = pool.settings.model_dump(exclude={"draft"})
    draft = pool.settings.draft
    return Pool(
        name=pool.name,
        role=pool.role,
        replicas=pool.replicas,
        shape=EngineShape(**pool.shape.model_dump()),
        settings=EngineSettings(**settings, draft=None if draft is None else Draft(**draft.model_dump())),
        gpu=pool.gpu,
        gpus_per_node=pool.gpus_per_node,
    )


def is_serving_layout(document: Document) -> bool:
    """Return whether a document is a serving layout, sound or not."""
    data = document.data
    return isinstance(data, dict) and "pools" in data and "plans" not in data


def serving_layout_from_document(document: Document) -> ServingLayout:
    """Return the serving layout that a file holds.

    Raises:
        InputError: It is damaged, or its pools cannot work together.
    """
    text = json.dumps(document.data)
    file = validated(lambda: ServingLayoutFile.model_validate_json(text), model=ServingLayoutFile, document=document)
    layout = file.to_layout()
    check_layout(layout)
    return layout
