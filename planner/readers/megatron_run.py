"""A Megatron-LM run as the rules look at it: what its flags say, as the framework completes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from planner.errors import Location
from planner.readers.argument_parser import read_arguments
from planner.readers.arguments import UNRESOLVED, Arguments, MistakeKind, NotSaidError, whole_number, words_of
from planner.readers.flag_tables import Framework, flag_table, version_key
from planner.readers.launch_line import launch_lines
from planner.readers.megatron_patterns import HybridPattern, PatternError, parse_hybrid
from planner.readers.megatron_stages import unrolled
from planner.readers.programs import MEGATRON_PROGRAM
from planner.readers.shell import read_script

PLAIN_PROGRAMS = frozenset({"pretrain_gpt.py", "pretrain_mamba.py", "pretrain_hybrid.py", "lora_gpt.py"})
"""Programs that take the flags of the table and no others; the rest may have flags of their own."""

EMERGING_OPTIMIZERS = frozenset({"muon", "dist_muon", "lion", "soap", "adaptive_muon"})
"""Optimizers that shard their state in a way of their own."""


@dataclass(frozen=True)
class MegatronRun:
    """A training run that a file starts.

    Degrees and sizes raise `NotSaidError` where only a run of the script could tell them; a rule that asks for such a
    one is not decided. Everything that `validate_args` of `megatron/training/arguments.py` fills in is filled in here.

    Args:
        arguments: The program's arguments.
        num_nodes: Nodes that the launcher is told of; None where it is left open.
        gpus_per_node: Processes of one node; None likewise.
        environment: Variables that the script exports; None where a file cannot say any.
        domain_gpus: GPUs that fast links join, where the cluster is known; else those of a node are taken to be.
    """

    arguments: Arguments
    num_nodes: int | None
    gpus_per_node: int | None
    environment: Mapping[str, str] | None
    domain_gpus: int | None = None

    def check_whole(self) -> None:
        """Raise `NotSaidError` where a word that only a run could tell may hold flags that seem to be missing."""
        if self.arguments.unread:
            raise NotSaidError(self.arguments.unread[0])

    @property
    def framework(self) -> Framework:
        """Return whose run it is."""
        return Framework.MEGATRON

    @property
    def version(self) -> str:
        """Return the version that it is judged for."""
        return self.arguments.table.version

    def is_from(self, version: str) -> bool:
        """Return whether it is judged for a version or a later one."""
        return version_key(self.version) >= version_key(version)

    @property
    def start(self) -> Location:
        """Return where it is started."""
        return self.arguments.start

    def place(self, *dests: str) -> Location:
        """Return where the first given of some values stands; where the command starts, if none is given."""
        return self.arguments.place(*dests)

    def said(self, dest: str) -> object:
        """Return what the flags say a value is, or its default; None where this version has no such flag."""
        return self.arguments.value(dest) if dest in self.arguments.table.defaults else None

    def value(self, dest: str) -> object:
        """Return what a value is once the framework has completed it."""
        completed = COMPLETED.get(dest)
        return self.said(dest) if completed is None else completed(self)

    def number(self, dest: str) -> int | None:
        """Return a whole number, or None where there is none."""
        return whole_number(self.value(dest), dest)

    def words(self, dest: str) -> tuple[str, ...]:
        """Return the parts of a list, or the one word; nothing where there is none."""
        return words_of(self.value(dest))

    def exported(self, name: str) -> str | None:
        """Return what the script exports a variable as; None for one that it does not."""
        value = None if self.environment is None else self.environment.get(name)
        if self.environment is None or (value is not None and UNRESOLVED.search(value)):
            raise NotSaidError(name)
        return value

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        if self.num_nodes is None or self.gpus_per_node is None:
            raise NotSaidError("the number of GPUs")
        return self.num_nodes * self.gpus_per_node

    def _degree(self, dest: str) -> int:
        value = self.arguments.integer(dest)
        if value < 1:
            raise NotSaidError(dest)
        return value

    @cached_property
    def tp(self) -> int:
        """Return the tensor-parallel degree."""
        return self._degree("tensor_model_parallel_size")

    @cached_property
    def pp(self) -> int:
        """Return the pipeline-parallel degree."""
        return self._degree("pipeline_model_parallel_size")

    @cached_property
    def cp(self) -> int:
        """Return the context-parallel degree."""
        return self._degree("context_parallel_size")

    @cached_property
    def ep(self) -> int:
        """Return the expert-parallel degree."""
        return self._degree("expert_model_parallel_size")

    @cached_property
    def etp(self) -> int:
        """Return the tensor-parallel degree of the experts, tp where it is not given."""
        given = self.arguments.optional_integer("expert_tensor_parallel_size")
        if given is not None and given < 1:
            raise NotSaidError("expert_tensor_parallel_size")
        return self.tp if given is None else given

    @cached_property
    def weight_shards(self) -> int:
        """Return into how many parts beyond tp each weight is split."""
        return self._remat("tensor_parallel_num_weight_shards", self.tp)

    @cached_property
    def expert_weight_shards(self) -> int:
        """Return into how many parts beyond etp each expert weight is split."""
        return self._remat("expert_tensor_parallel_num_weight_shards", self.etp)

    def _remat(self, dest: str, degree: int) -> int:
        shards = self.number(dest)
        if shards is not None and (shards < degree or shards % degree):
            raise NotSaidError(dest)
        return 1 if shards is None else shards // degree

    @property
    def replica(self) -> int:
        """Return the GPUs of one replica of the model."""
        return self.tp * self.pp * self.cp * self.weight_shards

    @cached_property
    def dp(self) -> int:
        """Return the data-parallel degree."""
        if self.world_size % self.replica:
            raise NotSaidError("the number of replicas")
        return self.world_size // self.replica

    @cached_property
    def num_experts(self) -> int | None:
        """Return the routed experts of a layer; None for a dense model."""
        return self.arguments.optional_integer("num_experts") or None

    @property
    def has_expert_layers(self) -> bool:
        """Return whether some layer has experts; in a hybrid model its pattern says which."""
        return self.num_experts is not None and (self.hybrid is None or "E" in self.hybrid.letters)

    @cached_property
    def num_attention_heads(self) -> int:
        """Return the query heads."""
        return self._degree("num_attention_heads")

    @cached_property
    def num_query_groups(self) -> int:
        """Return the key/value heads: as many as query heads without `--group-query-attention`."""
        if not self.arguments.is_on("group_query_attention"):
            return self.num_attention_heads
        return self._degree("num_query_groups")

    @cached_property
    def hidden_size(self) -> int:
        """Return the width of the residual stream."""
        return self._degree("hidden_size")

    @cached_property
    def ffn_hidden_size(self) -> int:
        """Return the width of the feed-forward layers."""
        given = self.arguments.optional_integer("ffn_hidden_size")
        if given is not None:
            return given
        return int((4 * self.hidden_size * 2 / 3) / 64) * 64 if self.arguments.is_on("swiglu") else 4 * self.hidden_size

    @cached_property
    def hybrid_text(self) -> str | None:
        """Return the pattern of a hybrid model, prediction modules behind `/`; None for other models."""
        given = self.said("hybrid_layer_pattern")
        old = self.said("hybrid_override_pattern")
        pattern = str(given) if given is not None else None if old is None else str(old)
        modules, module = self.said("mtp_num_layers"), self.said("mtp_hybrid_override_pattern")
        if isinstance(modules, int) and modules > 0 and module is not None and "/" not in (pattern or ""):
            return "/".join((pattern or "", *([str(module)] * modules)))
        return pattern

    @cached_property
    def hybrid(self) -> HybridPattern | None:
        """Return the layers of a hybrid model; None for other models."""
        if self.hybrid_text is None:
            return None
        try:
            return parse_hybrid(self.hybrid_text)
        except PatternError:
            raise NotSaidError("hybrid_layer_pattern") from None

    @cached_property
    def num_layers(self) -> int:
        """Return the decoder layers."""
        if self.hybrid is not None:
            return len(self.hybrid.letters)
        given = self.arguments.optional_integer("num_layers")
        number = self.arguments.optional_integer("encoder_num_layers") if given is None else given
        if number is None or number < 1:
            raise NotSaidError("num_layers")
        return number

    @cached_property
    def mtp_num_layers(self) -> int:
        """Return the prediction modules."""
        if self.hybrid is not None and self.hybrid.modules:
            return self.hybrid.modules
        return self.number_said("mtp_num_layers") or 0

    def number_said(self, dest: str) -> int | None:
        """Return a whole number as the flags say it."""
        value = self.said(dest)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @cached_property
    def seq_length(self) -> int:
        """Return the tokens of a sequence."""
        given = self.arguments.optional_integer("seq_length")
        number = self.arguments.optional_integer("encoder_seq_length") if given is None else given
        if number is None or number < 1:
            raise NotSaidError("seq_length")
        return number

    @cached_property
    def layout_stages(self) -> tuple[str, ...] | None:
        """Return the letters of each virtual stage of a pipeline layout; None without one."""
        text = self.said("pipeline_model_parallel_layout")
        if text is None:
            return None
        try:
            return tuple(unrolled(str(text)).split("|"))
        except PatternError:
            raise NotSaidError("pipeline_model_parallel_layout") from None

    @cached_property
    def counted_layers(self) -> int:
        """Return the layers with what counts as one: the embedding and the loss, where asked."""
        extra = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
        return self.num_layers + sum(self.value(dest) is True for dest in extra)

    @cached_property
    def vpp(self) -> int:
        """Return the virtual stages of a pipeline rank, 1 without interleaving.

        Raises:
            NotSaidError: It is not said, or no such stages split the layers.
        """
        if self.hybrid is not None:
            stages = len(self.hybrid.stages)
            return max(1, self._whole(stages, self.pp, "hybrid_layer_pattern")) if stages > 1 else 1
        if self.layout_stages is not None:
            return self._whole(len(self.layout_stages), self.pp, "pipeline_model_parallel_layout")
        per_rank = self.number("num_virtual_stages_per_pipeline_rank")
        if per_rank is not None:
            if per_rank < 1:
                raise NotSaidError("num_virtual_stages_per_pipeline_rank")
            return per_rank
        chunk = self.number("num_layers_per_virtual_pipeline_stage")
        if chunk is None:
            return 1
        layers = self._whole(self.counted_layers, self.pp, "num_layers")
        return self._whole(layers, chunk, "num_layers_per_virtual_pipeline_stage")

    @staticmethod
    def _whole(number: int, parts: int, what: str) -> int:
        if parts < 1 or number % parts:
            raise NotSaidError(what)
        return number // parts

    @property
    def is_uneven(self) -> bool:
        """Return whether the first or the last pipeline rank has layers of its own."""
        dests = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
        return any(self.said(dest) is not None for dest in dests)

    @cached_property
    def micro_batch_size(self) -> int:
        """Return the sequences of a micro-batch."""
        return self._degree("micro_batch_size")

    @cached_property
    def global_batch_size(self) -> int:
        """Return the sequences of a step: one micro-batch a replica where it is not given."""
        given = self.arguments.optional_integer("global_batch_size")
        return self.micro_batch_size * self.dp if given is None else given

    @cached_property
    def num_microbatches(self) -> int:
        """Return the micro-batches of a step of one replica."""
        if self.value("step_batch_size_schedule") is not None:
            raise NotSaidError("step_batch_size_schedule")
        one_round = self.micro_batch_size * self.dp
        if self.arguments.is_on("decrease_batch_size_if_needed"):
            return self.global_batch_size // one_round
        return self._whole(self.global_batch_size, one_round, "global_batch_size")

    @property
    def is_sixteen_bit(self) -> bool:
        """Return whether the model runs in bf16 or fp16."""
        return self.arguments.is_on("bf16") or self.arguments.is_on("fp16")

    @property
    def has_sharded_optimizer(self) -> bool:
        """Return whether the distributed optimizer is on, by its flag or by Megatron FSDP."""
        on = self.arguments.is_on("use_distributed_optimizer")
        if not self.is_from("0.18"):
            return on
        if self.arguments.is_on("use_megatron_fsdp"):
            return True
        frozen = self.is_from("0.19") and self.arguments.is_on("freeze_all_layers")
        return on and self.said("optimizer") not in EMERGING_OPTIMIZERS and not frozen

    @property
    def cuda_graph_impl(self) -> object:
        """Return which kind of CUDA graphs there is."""
        if self.arguments.is_on("enable_cuda_graph"):
            return "local"
        if self.arguments.is_on("external_cuda_graph"):
            return "transformer_engine"
        modules = (*self.words_said("cuda_graph_modules"), *self.words_said("cuda_graph_scope_deprecated"))
        return "full_iteration" if "full_iteration" in modules else self.said("cuda_graph_impl")

    def words_said(self, dest: str) -> tuple[str, ...]:
        """Return the parts of a list as the flags say it."""
        value = self.said(dest)
        return tuple(str(part) for part in value) if isinstance(value, list) else ()

    @property
    def cuda_graph_modules(self) -> tuple[str, ...]:
        """Return the modules that are captured, without the old words for a whole layer or iteration."""
        modules = (*self.words_said("cuda_graph_modules"), *self.words_said("cuda_graph_scope_deprecated"))
        return tuple(word for word in modules if not word.startswith("full"))

    @property
    def recompute_granularity(self) -> object:
        """Return what is recomputed."""
        if self.arguments.is_on("recompute_activations"):
            return "selective"
        given = self.said("recompute_granularity")
        return "selective" if given is None and self.arguments.is_on("moe_layer_recompute") else given

    @property
    def recompute_modules(self) -> tuple[str, ...]:
        """Return the modules that are recomputed, if the granularity is selective."""
        value = self.said("recompute_modules")
        modules = tuple(str(part) for part in value) if isinstance(value, list) else ("core_attn",)
        return (*modules, "moe") if self.arguments.is_on("moe_layer_recompute") and "moe" not in modules else modules

    @property
    def position_embedding_type(self) -> object:
        """Return the kind of position embedding."""
        return (
            "rope" if self.arguments.is_on("use_rotary_position_embeddings") else self.said("position_embedding_type")
        )

    @property
    def multi_latent_attention(self) -> bool:
        """Return whether keys and values are latent, by the flag or by the pattern of a hybrid."""
        in_pattern = self.hybrid is not None and not {"+", "D"}.isdisjoint(self.hybrid.letters)
        return self.arguments.is_on("multi_latent_attention") or in_pattern

    @property
    def reduces_in_fp32(self) -> bool:
        """Return whether gradients are added up and reduced in fp32."""
        given = self.arguments.is_on("accumulate_allreduce_grads_in_fp32")
        if not self.arguments.is_on("bf16"):
            return given
        if self.arguments.is_on("grad_reduce_in_bf16"):
            return False
        return given or self.said("main_grads_dtype") == "fp32"


COMPLETED: Mapping[str, Callable[[MegatronRun], object]] = {
    "sequence_parallel": lambda run: run.arguments.is_on("sequence_parallel") and run.tp > 1,
    "num_experts": lambda run: run.num_experts,
    "expert_tensor_parallel_size": lambda run: run.etp,
    "num_layers": lambda run: run.num_layers,
    "seq_length": lambda run: run.seq_length,
    "ffn_hidden_size": lambda run: run.ffn_hidden_size,
    "mtp_num_layers": lambda run: run.mtp_num_layers,
    "use_distributed_optimizer": lambda run: run.has_sharded_optimizer,
    "cuda_graph_impl": lambda run: run.cuda_graph_impl,
    "cuda_graph_modules": lambda run: run.cuda_graph_modules,
    "recompute_granularity": lambda run: run.recompute_granularity,
    "recompute_modules": lambda run: run.recompute_modules,
    "position_embedding_type": lambda run: run.position_embedding_type,
    "multi_latent_attention": lambda run: run.multi_latent_attention,
    "accumulate_allreduce_grads_in_fp32": lambda run: run.reduces_in_fp32,
    "overlap_p2p_comm": lambda run: run.said("overlap_p2p_comm") is True and run.vpp > 1,
    "hybrid_layer_pattern": lambda run: run.hybrid_text,
    "reuse_grad_buf_for_mxfp8_param_ag": lambda run: (
        run.arguments.is_on("reuse_grad_buf_for_mxfp8_param_ag") and not run.arguments.is_on("use_megatron_fsdp")
    ),
    "apply_rope_fusion": lambda run: run.said("apply_rope_fusion") is True and run.position_embedding_type == "rope",
    "async_save": lambda run: (
        run.arguments.is_on("async_save")
        and (run.said("ckpt_format") == "torch" or run.arguments.is_on("use_persistent_ckpt_worker"))
    ),
    "overlap_param_gather": lambda run: (
        run.arguments.is_on("overlap_param_gather") and not run.arguments.is_on("freeze_all_layers")
    ),
}
"""Values that `validate_args` completes from others."""


def read_megatron_runs(
    text: str, *, file: str, version: str, num_gpus: int | None = None, gpus_per_node: int | None = None
) -> tuple[MegatronRun, ...]:
    """Return the training runs that a script starts.

    Args:
        text: The script.
        file: What messages call it.
        version: The version whose flags count.
        num_gpus: GPUs, where the script leaves them open.
        gpus_per_node: GPUs of a node, likewise.

    Raises:
        InputError: The script is damaged.
    """
    table = flag_table(Framework.MEGATRON, version)
    runs: list[MegatronRun] = []
    for line in launch_lines(read_script(text, file=file), file=file, kind=MEGATRON_PROGRAM):
        per_node = line.gpus_per_node or gpus_per_node or num_gpus
        nodes = line.num_nodes or (num_gpus // per_node if num_gpus and per_node else None)
        arguments = read_arguments(line.words, table, file=file, start=line.start)
        if line.program.rpartition("/")[2] not in PLAIN_PROGRAMS:
            known = tuple(mistake for mistake in arguments.mistakes if mistake.kind is not MistakeKind.UNKNOWN)
            arguments = replace(arguments, mistakes=known)
        runs.append(
            MegatronRun(
                arguments=arguments,
                num_nodes=nodes,
                gpus_per_node=per_node,
                environment=line.environment,
            )
        )
    return tuple(runs)
