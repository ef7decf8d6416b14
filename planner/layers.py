"""Builds the operator graph of each kind of layer: norms, attention, feed-forward, embedding, head.

Traffic of element-wise kernels is counted in passes over their tensors, each read or written once. What is saved for
backward follows the fused kernels of Megatron-LM with Transformer Engine; see `planner.graph`.
"""

from planner.blocks import Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.graph import (
    CoreAttention,
    LayerGraph,
    Linear,
    Lookup,
    LossReduction,
    ModelGraph,
    Module,
    Operator,
    Parallel,
    Pointwise,
    Region,
    Saved,
    Weight,
)
from planner.specs import ModelSpec
from planner.workload import AttentionKernel, DType, TrainMethod, TrainWorkload

GATED_FORWARD_PASSES, GATED_BACKWARD_PASSES = 3, 5  # read gate, up, write; read gate, up, grad, write two
PLAIN_FORWARD_PASSES, PLAIN_BACKWARD_PASSES = 2, 3  # read, write; read input, grad, write
NORM_FORWARD_PASSES, NORM_BACKWARD_PASSES = 2, 3  # read, write; read input, grad, write
RESIDUAL_PASSES = 3  # read branch, read stream, write
LOGIT_FORWARD_BYTES = 22  # cast 2 + 4, maximum 4, subtract and exponentiate in place 8, sum 4
LOGIT_BACKWARD_BYTES = 22  # normalise in place 8, subtract target in place 8, cast 4 + 2
LOGSUMEXP_BYTES = 4


class _BlockBuilder:
    """Builds operators of one model under one workload; holds what they all share."""

    def __init__(self, model: ModelSpec, workload: TrainWorkload) -> None:
        self.model = model
        self.workload = workload
        self.hidden = model.hidden_size
        self.dtype = workload.precision.parameter_dtype
        self.gemm_dtype = workload.precision.gemm_dtype
        self.width = self.dtype.num_bytes
        self.lora = workload.lora
        self.base_trains = workload.method is not TrainMethod.LORA
        # Megatron-LM's fused cross entropy, emitted for bf16, sums target logits and exponentials in one reduction.
        self.fused_loss = self.dtype is DType.BF16

    def norm(self, name: str, *, input_name: str = "", module: Module | None = None) -> Operator:
        """Return a norm over the residual stream, whose own name it is unless `input_name` says otherwise."""
        return Operator(
            name=name,
            work=Pointwise(
                forward_bytes_per_token=NORM_FORWARD_PASSES * self.hidden * self.width,
                backward_bytes_per_token=NORM_BACKWARD_PASSES * self.hidden * self.width,
                region=Region.RESIDUAL,
            ),
            weights=self.norm_weights(name, self.hidden),
            saved=(
                Saved(
                    name=input_name or f"{name} input",
                    features=self.hidden,
                    element_bytes=self.width,
                    region=Region.RESIDUAL,
                ),
            ),
            module=module,
        )

    def norm_weights(self, name: str, size: int) -> tuple[Weight, ...]:
        """Return a norm's scale and, for LayerNorm, its shift."""
        parts = ("scale",) if self.model.norm is Norm.RMS else ("scale", "shift")
        return tuple(
            Weight(name=f"{name} {part}", shape=(size,), split_dim=None, trainable=self.base_trains) for part in parts
        )

    def linear(  # noqa: PLR0913 - a linear layer has this many facts
        self,
        name: str,
        *,
        in_features: int,
        out_features: int,
        parallel: Parallel,
        bias: bool,
        input_name: str,
        module: Module | None = None,
        input_dropped_by: Module | None = None,
        whole_heads: int | None = None,
    ) -> Operator:
        """Return a linear layer with its weight, bias, adapter and saved input."""
        rank = self.lora.rank if self.lora is not None and name in self.lora.target_modules else 0
        split = 0 if parallel is Parallel.COLUMN else 1
        weights = [
            Weight(
                name=f"{name} weight",
                shape=(out_features, in_features),
                split_dim=split,
                trainable=self.base_trains,
                gemm_operand=True,
            )
        ]
        if bias:
            weights.append(
                Weight(
                    name=f"{name} bias",
                    shape=(out_features,),
                    split_dim=0 if parallel is Parallel.COLUMN else None,
                    trainable=self.base_trains,
                )
            )
        saved: list[Saved] = []
        region = Region.RESIDUAL if parallel is Parallel.COLUMN else Region.SHARDED
        column = parallel is Parallel.COLUMN
        if self.base_trains or rank or column:
            # An fp8 linear layer keeps the quantised input, which is a tensor of its own; an adapter reads the input
            # in full precision. Transformer Engine's column-parallel layer keeps its fused norm's output even where
            # the weight is frozen.
            dtype = self.gemm_dtype if self.base_trains else self.dtype
            saved.append(
                Saved(
                    name=input_name if dtype is self.dtype else f"{input_name} in {dtype}",
                    features=in_features,
                    element_bytes=dtype.num_bytes,
                    region=region,
                    dropped_by=input_dropped_by,
                )
            )
        if rank and column:
            # The norm is fused into the layer, so the adapter normalises its input again, into a tensor of its own.
            saved.append(
                Saved(
                    name=f"{name} adapter input",
                    features=in_features,
                    element_bytes=self.width,
                    region=region,
                    dropped_by=module,
                )
            )
        if rank:
            weights += [
                Weight(
                    name=f"{name} adapter A",
                    shape=(rank, in_features),
                    split_dim=None if parallel is Parallel.COLUMN else 1,
                    trainable=True,
                ),
                Weight(
                    name=f"{name} adapter B",
                    shape=(out_features, rank),
                    split_dim=0 if parallel is Parallel.COLUMN else None,
                    trainable=True,
                ),
            ]
            saved.append(
                Saved(
                    name=f"{name} adapter hidden",
                    features=rank,
                    element_bytes=self.width,
                    region=Region.RESIDUAL,
                    dropped_by=module,
                )
            )
        return Operator(
            name=name,
            work=Linear(
                in_features=in_features,
                out_features=out_features,
                parallel=parallel,
                dtype=self.gemm_dtype,
                trains_weight=self.base_trains,
                adapter_rank=rank,
                whole_heads=whole_heads,
            ),
            weights=tuple(weights),
            saved=tuple(saved),
            module=module,
        )

    def residual(self, name: str) -> Operator:
        """Return bias, dropout and residual addition in one kernel."""
        saved: tuple[Saved, ...] = ()
        if self.workload.hidden_dropout > 0:
            saved = (Saved(name=f"{name} dropout mask", features=self.hidden, element_bytes=1, region=Region.RESIDUAL),)
        return Operator(
            name=name,
            work=Pointwise(
                forward_bytes_per_token=RESIDUAL_PASSES * self.hidden * self.width,
                backward_bytes_per_token=RESIDUAL_PASSES * self.hidden * self.width,
                region=Region.RESIDUAL,
            ),
            saved=saved,
        )

    def attention(self, spec: SelfAttention, input_name: str) -> list[Operator]:
        """Return the operators of softmax attention, from projection to projection."""
        heads = spec.num_attention_heads
        qkv = self.linear(
            "qkv",
            in_features=self.hidden,
            out_features=spec.query_size + 2 * spec.key_value_size,
            parallel=Parallel.COLUMN,
            bias=spec.qkv_bias,
            input_name=input_name,
            whole_heads=spec.num_key_value_heads,
        )
        operators = [qkv]
        qk_size = spec.query_size + spec.key_value_size
        if spec.qk_norm:
            operators.append(self.qk_norm(spec))
        if self.model.position_embedding is PositionEmbedding.ROPE:
            rotated_bytes = round(2 * qk_size * self.model.rotary_fraction) * self.width
            operators.append(
                Operator(
                    name="rotary",
                    work=Pointwise(
                        forward_bytes_per_token=rotated_bytes,
                        backward_bytes_per_token=rotated_bytes,
                        region=Region.SHARDED,
                    ),
                )
            )
        operators.append(
            Operator(
                name="core attention",
                work=CoreAttention(
                    attention=spec,
                    dtype=self.dtype,
                    fused=self.workload.attention_kernel is not AttentionKernel.UNFUSED,
                ),
                saved=self.attention_saved(spec, heads),
                module=Module.CORE_ATTENTION,
            )
        )
        operators.append(
            self.linear(
                "proj",
                in_features=spec.query_size,
                out_features=self.hidden,
                parallel=Parallel.ROW,
                bias=spec.output_bias,
                input_name="attention output",
            )
        )
        return operators

    def attention_saved(self, spec: SelfAttention, heads: int) -> tuple[Saved, ...]:
        """Return what the attention core keeps; a fused kernel needs the output too, an unfused one the scores."""

        def head_tensor(name: str, features: int) -> Saved:
            return Saved(
                name=name,
                features=features,
                element_bytes=self.width,
                region=Region.SHARDED,
                granule=spec.head_dim,
            )

        unfused = self.workload.attention_kernel is AttentionKernel.UNFUSED
        # The unfused core copies each key/value head for each of its query heads (`repeat_interleave`).
        key_value_size = spec.query_size if unfused else spec.key_value_size
        saved = [
            head_tensor("query", spec.query_size),
            head_tensor("key", key_value_size),
            head_tensor("value", key_value_size),
        ]
        if unfused:
            row = heads * self.workload.seq_len
            saved.append(
                Saved(
                    name="softmax output",
                    features=row,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    dropped_by=Module.CORE_ATTENTION,
                )
            )
            if self.workload.attention_dropout > 0:
                saved += [
                    Saved(
                        name="attention dropout mask",
                        features=row,
                        element_bytes=1,
                        region=Region.SHARDED,
                        dropped_by=Module.CORE_ATTENTION,
                    ),
                    Saved(
                        name="attention dropout output",
                        features=row,
                        element_bytes=self.width,
                        region=Region.SHARDED,
                        dropped_by=Module.CORE_ATTENTION,
                    ),
                ]
        else:
            saved += [
                Saved(
                    name="attention output",
                    features=spec.query_size,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    granule=spec.head_dim,
                ),
                Saved(
                    name="log-sum-exp",
                    features=heads,
                    element_bytes=LOGSUMEXP_BYTES,
                    region=Region.SHARDED,
                    dropped_by=Module.CORE_ATTENTION,
                ),
            ]
        return tuple(saved)

    def qk_norm(self, spec: SelfAttention) -> Operator:
        """Return the norms over each query and key head, which keep their inputs."""
        size = spec.query_size + spec.key_value_size
        return Operator(
            name="qk norm",
            work=Pointwise(
                forward_bytes_per_token=NORM_FORWARD_PASSES * size * self.width,
                backward_bytes_per_token=NORM_BACKWARD_PASSES * size * self.width,
                region=Region.SHARDED,
                num_kernels=2,
            ),
            weights=(*self.norm_weights("query norm", spec.head_dim), *self.norm_weights("key norm", spec.head_dim)),
            saved=tuple(
                Saved(
                    name=f"{which} norm input",
                    features=features,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    granule=spec.head_dim,
                )
                for which, features in (("query", spec.query_size), ("key", spec.key_value_size))
            ),
        )

    def feed_forward(self, spec: DenseFeedForward, input_name: str) -> list[Operator]:
        """Return two projections around an activation."""
        width = spec.intermediate_size * (2 if spec.gated else 1)
        forward, backward = (
            (GATED_FORWARD_PASSES, GATED_BACKWARD_PASSES)
            if spec.gated
            else (PLAIN_FORWARD_PASSES, PLAIN_BACKWARD_PASSES)
        )
        return [
            self.linear(
                "fc1",
                in_features=self.hidden,
                out_features=width,
                parallel=Parallel.COLUMN,
                bias=spec.bias,
                input_name=input_name,
                module=Module.MLP,
                input_dropped_by=Module.MLP,
            ),
            Operator(
                name=f"gated {spec.activation}" if spec.gated else str(spec.activation),
                work=Pointwise(
                    forward_bytes_per_token=forward * spec.intermediate_size * self.width,
                    backward_bytes_per_token=backward * spec.intermediate_size * self.width,
                    region=Region.SHARDED,
                ),
                saved=(
                    Saved(
                        name="activation input",
                        features=width,
                        element_bytes=self.width,
                        region=Region.SHARDED,
                        dropped_by=Module.MLP,
                    ),
                ),
                module=Module.MLP,
            ),
            self.linear(
                "fc2",
                in_features=spec.intermediate_size,
                out_features=self.hidden,
                parallel=Parallel.ROW,
                bias=spec.bias,
                input_name="activation output",
                module=Module.MLP,
                input_dropped_by=Module.MLP,
            ),
        ]

    def block(self, block: Block) -> LayerGraph:
        """Return the graph of one decoder layer."""
        operators: list[Operator] = []
        if block.mixer is not None:
            operators.append(self.norm("attention norm"))
            operators += self.attention(block.mixer, "attention norm output")
            if not block.parallel:
                operators.append(self.residual("attention residual"))
        if block.feed_forward is not None:
            shares_norm = block.parallel and block.num_norms == 1
            if not shares_norm:
                # Megatron-LM's norm is a part of fc1, so recomputing the MLP runs it again and drops its output.
                stream = "attention norm input" if block.parallel and block.mixer is not None else ""
                operators.append(self.norm("feed-forward norm", input_name=stream, module=Module.MLP))
            source = "attention norm output" if shares_norm else "feed-forward norm output"
            operators += self.feed_forward(block.feed_forward, source)
            operators.append(self.residual("feed-forward residual"))
        return LayerGraph(name="block", operators=_share_saved(operators), layer_input=self.stream("layer input"))

    def stream(self, name: str) -> Saved:
        """Return the residual stream as a saved tensor."""
        return Saved(name=name, features=self.hidden, element_bytes=self.width, region=Region.RESIDUAL)

    def embedding(self) -> LayerGraph:
        """Return token look-up, learned positions and the norm behind them."""
        model = self.model
        weights = [
            Weight(
                name="word embedding",
                shape=(model.vocab_size, self.hidden),
                split_dim=0,
                trainable=self.base_trains,
                vocab_dim=0,
            )
        ]
        if model.position_embedding is PositionEmbedding.LEARNED:
            weights.append(
                Weight(
                    name="position embedding",
                    shape=(model.num_position_rows, self.hidden),
                    split_dim=None,
                    trainable=self.base_trains,
                )
            )
        operators = [
            Operator(
                name="word embedding",
                work=Lookup(hidden_size=self.hidden, dtype=self.dtype),
                weights=tuple(weights),
            )
        ]
        if model.embedding_norm:
            operators.append(self.norm("embedding norm"))
        if self.workload.hidden_dropout > 0:
            mask = Saved(name="embedding dropout mask", features=self.hidden, element_bytes=1, region=Region.RESIDUAL)
            passes = PLAIN_FORWARD_PASSES * self.hidden * self.width
            work = Pointwise(forward_bytes_per_token=passes, backward_bytes_per_token=passes, region=Region.RESIDUAL)
            operators.append(Operator(name="embedding dropout", work=work, saved=(mask,)))
        return LayerGraph(name="embedding", operators=tuple(operators), layer_input=None)

    def head(self) -> LayerGraph:
        """Return final norm, LM head and cross entropy; the logits are in 16 bit, the loss in 32."""
        model = self.model
        linear = Linear(
            in_features=self.hidden,
            out_features=model.vocab_size,
            parallel=Parallel.COLUMN,
            dtype=self.dtype,
            trains_weight=self.base_trains,
            vocab_output=True,
        )
        weights = [
            Weight(
                name="lm head weight",
                shape=(model.vocab_size, self.hidden),
                split_dim=0,
                trainable=self.base_trains,
                vocab_dim=0,
                shared_with_embedding=model.tie_word_embeddings,
            )
        ]
        if model.lm_head_bias:
            weights.append(
                Weight(
                    name="lm head bias",
                    shape=(model.vocab_size,),
                    split_dim=0,
                    trainable=self.base_trains,
                    vocab_dim=0,
                )
            )
        saved = (self.stream("final norm output"),) if self.base_trains else ()
        return LayerGraph(
            name="head",
            operators=(
                self.norm("final norm"),
                Operator(name="lm head", work=linear, weights=tuple(weights), saved=saved),
                Operator(name="loss reductions", work=LossReduction(num_reductions=2 if self.fused_loss else 3)),
                Operator(
                    name="cross entropy",
                    work=Pointwise(
                        forward_bytes_per_token=LOGIT_FORWARD_BYTES,
                        backward_bytes_per_token=LOGIT_BACKWARD_BYTES,
                        region=Region.SHARDED,
                        vocab_features=model.vocab_size,
                        num_kernels=6,
                    ),
                    saved=(
                        Saved(
                            name="softmax of logits",
                            features=model.vocab_size,
                            element_bytes=DType.FP32.num_bytes,
                            region=Region.SHARDED,
                            vocab_features=True,
                        ),
                    ),
                ),
            ),
            layer_input=self.stream("layer input"),
        )


def _share_saved(operators: list[Operator]) -> tuple[Operator, ...]:
    """Return the operators with each saved tensor kept once, by the first operator that names it.

    A tensor that one operator keeps for good and another would drop is kept.
    """
    kept: dict[str, Saved] = {}
    owner: dict[str, int] = {}
    for index, operator in enumerate(operators):
        for saved in operator.saved:
            first = kept.get(saved.name)
            owner.setdefault(saved.name, index)
            if first is None or saved.dropped_by is None:
                kept[saved.name] = saved
    return tuple(
        Operator(
            name=operator.name,
            work=operator.work,
            weights=operator.weights,
            saved=tuple(kept[saved.name] for saved in operator.saved if owner[saved.name] == index),
            module=operator.module,
        )
        for index, operator in enumerate(operators)
    )


def build_graph(model: ModelSpec, workload: TrainWorkload) -> ModelGraph:
    """Return the operators of every kind of layer of `model` under `workload`."""
    builder = _BlockBuilder(model, workload)
    return ModelGraph(
        embedding=builder.embedding(),
        blocks={block: builder.block(block) for block in model.distinct_blocks},
        head=builder.head(),
        hidden_size=model.hidden_size,
        stream_bytes=builder.width,
    )
