"""The facts from which the training program beside a DeepSpeed configuration builds its model -> `ModelSpec`.

`planner.emit.deepspeed` writes them; the model's name is not among them.
"""

import json
from collections.abc import Mapping

from planner.documents import Document
from planner.models.blocks import Norm, PositionEmbedding
from planner.models.specs import BlockRun, ModelSpec, Trait
from planner.schema.strict import Strict
from planner.schema.translate import validated

INLINE = "inline"


class ModelFacts(Strict):
    """A model by its shapes."""

    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    norm: Norm
    norm_epsilon: float
    position_embedding: PositionEmbedding
    position_offset: int
    rope_theta: float | None
    rotary_fraction: float
    rope_scaling: Mapping[str, float | str]
    lm_head_bias: bool
    embedding_norm: bool
    traits: tuple[Trait, ...]
    runs: tuple[BlockRun, ...]

    def to_model(self, name: str) -> ModelSpec:
        """Return the model."""
        return ModelSpec(name=name, architecture=INLINE, **dict(self))


def model_from_facts(document: Document, *, name: str) -> ModelSpec:
    """Return the model that a file of facts describes.

    Raises:
        InputError: It is damaged.
    """
    text = json.dumps(document.data)
    file = validated(lambda: ModelFacts.model_validate_json(text), model=ModelFacts, document=document)
    return file.to_model(name)
