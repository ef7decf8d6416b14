"""Sound files of every kind that a command reads, and the command lines that read them.

Everything is tiny, so that a command takes a fraction of a second. Plans, checks of them and profiles are written by
the commands themselves; logs, traces and counts are made up. Each command line is tried undamaged first.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OUT = "{out}"
"""Stands in a command line for the folder that it may write into."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1024,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    **CONFIG, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
TRAIN = """schema: 1
model: config.json
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 1024, global_batch_size: 16, precision: bf16}
constraints: {tp: [1, 2], pp: [1, 2], cp: 1}
"""
ON_OWN_CLUSTER = TRAIN.replace("{preset: dgx-h100, nodes: 1}", "cluster.yaml")
DEEPSPEED = TRAIN.replace("constraints: {tp: [1, 2], pp: [1, 2], cp: 1}", "target: deepspeed\nconstraints: {tp: 1}")
CLUSTER = """name: ours
gpu: h100-sxm-80gb
gpus_per_node: 4
nodes: 2
nics: {count: 4, bandwidth: 400Gb/s}
host_ram: 1TiB
"""
SERVE = """schema: 1
model: config.json
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: serve, input: 256, output: 64, requests_per_second: 4, slo: {ttft_ms: 2000, tpot_ms: 50}}
constraints: {tp: 1, pp: 1, dp: 1, max_num_batched_tokens: 8192, split: never}
"""
TRACED = SERVE.replace("input: 256, output: 64, requests_per_second: 4", "trace: requests.csv, arrivals: trace")
ROUTED = SERVE.replace("config.json", "experts.json").replace(
    "output: 64", "output: 64, routing: {histogram: counts.json}"
)
OFFLOADED = """schema: 1
model: config.json
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: serve, input: 256, output: 32, arrivals: offline}
"""
REQUESTS = "arrival,input_tokens,output_tokens\n" + "".join(f"{n / 4},{100 + n},{20 + n}\n" for n in range(12))
COUNTS = [[(layer + 3 * expert) % 11 + 1 for expert in range(8)] for layer in range(4)]
LOG = "".join(
    f" [2026-01-01 00:00:00] iteration {number:8}/      10 | consumed samples: {16 * number:12} |"
    f" elapsed time per iteration (ms): {80.0 if number > 3 else 300.0} | learning rate: 1.0E-04 | lm loss: 1.0E+01 |"
    " number of skipped iterations:   0 |\n"
    for number in range(1, 11)
)
NCCL_LOG = """# nccl-tests version 2.18.3 nccl-headers=23003 nccl-library=23003
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 2 minBytes 8 maxBytes 67108864 step: 2(factor) iters: 20 validation: 1 graph: 0 unalign: 0
#
# Using devices
#  Rank  0 Group  0 Pid   1000 on      node0 device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid   1001 on      node0 device  1 [0000:1c:00] NVIDIA H100 80GB HBM3
#
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        262144     float     sum      -1    25.24   41.54   41.54      0    25.24   41.54   41.54      0
    67108864      16777216     float     sum      -1   355.54  188.75  188.75      0   355.54  188.75  188.75      0
# Out of bounds values : 0 OK
"""
RUNS = """id,model,seq_len,hardware,gpus_per_node,num_gpus,precision,tp,pp,vpp,cp,ep,dp,micro_batch,global_batch,\
recompute,framework,step_time_s,tokens_per_s_per_gpu,peak_mem_gb,status,notes
A,llama-3.1-8b,4096,DGX-H100,8,8,bf16,2,1,1,1,1,4,1,128,none,Megatron-LM,9.9,,60.1,ok,
B,llama-3.1-8b,8192,DGX-H100,8,16,bf16,4,2,1,1,1,2,1,128,selective,Megatron-LM,,5000,,ok,"made up, as all"
C,llama-3.1-70b,8192,DGX-H100,8,8,bf16,8,1,1,1,1,1,1,128,none,Megatron-LM,,,,oom,
"""
SERVED = """id,model,quant,hardware,num_gpus,tp,pp,dp,ep,engine,engine_version,isl,osl,concurrency_or_batch,ttft_ms,\
tpot_ms,mode,usable
A,meta-llama/Llama-3.1-8B,fp8,h100_sxm,1,1,1,1,1,vllm,0.19.0,1024,256,8,60,7,agg,yes
B,meta-llama/Llama-3.1-8B,fp8,h100_sxm,2,2,1,1,1,vllm,0.19.0,1024,256,16,60,6,agg,yes
"""
TOPOLOGY = """\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tNV18\tPXB\t0-55\t0\t\tN/A
GPU1\tNV18\t X \tSYS\t0-55\t0\t\tN/A
NIC0\tPXB\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  NIC0: mlx5_0
"""
SLURM = "NodeName=node[0-3] CPUs=112 RealMemory=2000000 Gres=gpu:h100:2 State=UNKNOWN\n"


def snapshot() -> bytes:
    """Return what a snapshot of torch's allocator holds of one block."""
    block = {"address": 4096, "size": 1 << 28, "requested_size": 1 << 28, "state": "active_allocated", "frames": []}
    segment = {"device": 0, "address": 4096, "total_size": 1 << 28, "stream": 0, "blocks": [block]}
    return pickle.dumps({"segments": [segment], "device_traces": [[]], "allocator_settings": {}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A command line, and the file of those it reads that is damaged.

    Args:
        name: What it is called.
        words: The command line, files by their names; `OUT` for the folder that it may write into.
        files: By name the files that it reads, of which each text, document or bytes is written as it is.
        damaged: Name of the file that is damaged; empty to damage a word of the command line.
        before: Command lines that make more files first, from undamaged ones, into the same folder.
        behind: By pattern of a folder that these made, and a name in it, more files.
        codes: What it may end with undamaged.
        beside: Files that it writes beside those it reads, as its help says.
    """

    name: str
    words: tuple[str, ...]
    files: Mapping[str, object]
    damaged: str = ""
    before: tuple[tuple[str, ...], ...] = ()
    behind: Mapping[tuple[str, str], str] = field(default_factory=dict)
    codes: frozenset[int] = field(default_factory=lambda: frozenset({0}))
    beside: frozenset[str] = frozenset()

    def write_into(self, folder: Path, run: Callable[[tuple[str, ...], Path], int]) -> None:
        """Write the undamaged files.

        Args:
            folder: Where.
            run: Runs a command line in a folder, and returns what it ends with.
        """
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            match content:
                case bytes():
                    (folder / name).write_bytes(content)
                case str():
                    (folder / name).write_text(content, encoding="utf-8")
                case _:
                    (folder / name).write_text(json.dumps(content), encoding="utf-8")
        for words in self.before:
            assert run(words, folder) == 0, f"{words} makes the files of {self.name}"
        for (pattern, name), text in self.behind.items():
            for made in folder.glob(pattern):
                (made / name).write_text(text, encoding="utf-8")


_PLANNED = {"config.json": CONFIG, "spec.yaml": TRAIN}
_PLAN = (("plan", "spec.yaml", "--out", "run"),)
_LOGS = {("run/verify/layout-*", "node-0.log"): LOG, ("run/verify/layout-*", "node-0.exit"): "0\n"}
_MEASURED = frozenset({"run/verify/measurements.csv"})
_FINDINGS = frozenset({0, 1})

TARGETS: tuple[Target, ...] = (
    Target(
        name="plan, the spec", words=("plan", "spec.yaml", "--out", OUT), files=_PLANNED, damaged="spec.yaml"
    ),
    Target(
        name="plan, the model", words=("plan", "spec.yaml", "--format", "json"), files=_PLANNED, damaged="config.json"
    ),
    Target(
        name="plan, the cluster",
        words=("plan", "spec.yaml", "--out", OUT),
        files={"config.json": CONFIG, "spec.yaml": ON_OWN_CLUSTER, "cluster.yaml": CLUSTER},
        damaged="cluster.yaml",
    ),
    Target(
        name="plan for DeepSpeed, the spec",
        words=("plan", "spec.yaml", "--out", OUT),
        files={"config.json": CONFIG, "spec.yaml": DEEPSPEED},
        damaged="spec.yaml",
    ),
    Target(
        name="plan, words",
        words=("plan", "spec.yaml", "--set", "workload.seq_len=512", "--why-not", "tp=4", "--top", "2", "--out", OUT),
        files=_PLANNED,
    ),
    Target(
        name="plan of servers, the spec",
        words=("plan", "serve.yaml", "--out", OUT),
        files={"config.json": CONFIG, "serve.yaml": SERVE},
        damaged="serve.yaml",
    ),
    Target(
        name="plan of servers, a trace",
        words=("plan", "serve.yaml", "--out", OUT),
        files={"config.json": CONFIG, "serve.yaml": TRACED, "requests.csv": REQUESTS},
        damaged="requests.csv",
    ),
    Target(
        name="plan of servers, counts of experts",
        words=("plan", "serve.yaml", "--out", OUT),
        files={"experts.json": EXPERTS, "serve.yaml": ROUTED, "counts.json": COUNTS},
        damaged="counts.json",
    ),
    Target(
        name="plan, a calibration",
        words=("plan", "spec.yaml", "--calibration", "calibration.json", "--out", OUT),
        files={**_PLANNED, "run.log": LOG},
        before=(*_PLAN, ("calibrate", "run", "run.log", "--out", "calibration.json")),
        damaged="calibration.json",
    ),
    Target(
        name="emit, a plan",
        words=("emit", "run/plan.json", "--out", OUT),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/plan.json",
    ),
    Target(name="explain, a plan", words=("explain", "run"), files=_PLANNED, before=_PLAN, damaged="run/plan.json"),
    Target(
        name="report, a plan",
        words=("report", "run", "--out", f"{OUT}/page.html"),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/plan.json",
    ),
    Target(
        name="trace, a plan",
        words=("trace", "run", "--out", OUT),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/plan.json",
    ),
    Target(
        name="diff, a lock file",
        words=("diff", "run/plan.lock.json", "run/launch.sh"),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/plan.lock.json",
        codes=_FINDINGS,
    ),
    Target(
        name="evaluate, a script",
        words=("evaluate", "run/launch.sh", "--cluster", "dgx-h100"),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/launch.sh",
        codes=_FINDINGS,
    ),
    Target(
        name="validate, a script",
        words=("validate", "run/launch.sh"),
        files=_PLANNED,
        before=_PLAN,
        damaged="run/launch.sh",
        codes=_FINDINGS,
    ),
    Target(
        name="collect, the list of runs",
        words=("collect", "run/verify"),
        files=_PLANNED,
        before=_PLAN,
        behind=_LOGS,
        damaged="run/verify/runs.csv",
        beside=_MEASURED,
    ),
    Target(
        name="collect, logs",
        words=("collect", "run"),
        files=_PLANNED,
        before=_PLAN,
        behind=_LOGS,
        damaged="run/verify/layout-*/node-*",
        beside=_MEASURED,
    ),
    Target(
        name="calibrate, a log",
        words=("calibrate", "run", "run.log", "--out", f"{OUT}/calibration.json"),
        files={**_PLANNED, "run.log": LOG},
        before=_PLAN,
        damaged="run.log",
    ),
    Target(
        name="reconcile, a snapshot",
        words=("reconcile", "run", "snapshot.pickle"),
        files={**_PLANNED, "snapshot.pickle": snapshot()},
        before=_PLAN,
        damaged="snapshot.pickle",
    ),
    Target(
        name="experts, counts as JSON",
        words=("experts", "counts.json", "--gpus", "4", "--redundant", "4", "--out", f"{OUT}/experts.json"),
        files={"counts.json": COUNTS},
        damaged="counts.json",
    ),
    Target(
        name="experts, counts as CSV",
        words=("experts", "counts.csv", "--gpus", "4", "--redundant", "4"),
        files={"counts.csv": "".join(",".join(map(str, row)) + "\n" for row in COUNTS)},
        damaged="counts.csv",
    ),
    Target(
        name="experts, words",
        words=("experts", "zipf:1.0", "--layers", "2", "--experts", "4", "--gpus", "2", "--redundant", "2"),
        files={},
    ),
    Target(
        name="offload, the spec",
        words=("offload", "serve.yaml", "--target", "vllm", "--out", OUT),
        files={"config.json": CONFIG, "serve.yaml": OFFLOADED},
        damaged="serve.yaml",
    ),
    Target(
        name="accuracy, runs of training", words=("accuracy", "runs.csv"), files={"runs.csv": RUNS}, damaged="runs.csv"
    ),
    Target(
        name="accuracy, runs of servers",
        words=("accuracy", "served.csv"),
        files={"served.csv": SERVED},
        damaged="served.csv",
    ),
    Target(
        name="profile import, a log",
        words=("profile", "import", "nccl.log", "--out", OUT),
        files={"nccl.log": NCCL_LOG},
        damaged="nccl.log",
    ),
    Target(
        name="profile show, a profile",
        words=("profile", "show", "measured"),
        files={"nccl.log": NCCL_LOG},
        before=(("profile", "import", "nccl.log", "--out", "measured"),),
        damaged="measured/*",
    ),
    Target(
        name="profile check, a profile",
        words=("profile", "check", "measured", "--spec", "spec.yaml"),
        files={**_PLANNED, "nccl.log": NCCL_LOG},
        before=(("profile", "import", "nccl.log", "--out", "measured"),),
        damaged="measured/*",
        codes=_FINDINGS,
    ),
    Target(
        name="profile merge, a profile",
        words=("profile", "merge", "measured", "--out", f"{OUT}/merged"),
        files={"nccl.log": NCCL_LOG},
        before=(("profile", "import", "nccl.log", "--out", "measured"),),
        damaged="measured/*",
    ),
    Target(
        name="profile export, a profile",
        words=("profile", "export", "measured", "--out", f"{OUT}/points.csv"),
        files={"nccl.log": NCCL_LOG},
        before=(("profile", "import", "nccl.log", "--out", "measured"),),
        damaged="measured/*",
    ),
    Target(
        name="profile run on other nodes, the spec",
        words=("profile", "run", "spec.yaml", "--emit", "slurm", "--nodes", "1", "--processes", "8", "--out", OUT),
        files=_PLANNED,
        damaged="spec.yaml",
    ),
    Target(
        name="cluster import, a topology",
        words=(
            "cluster", "import", "topo.txt", "slurm.conf", "--gpu", "h100-sxm-80gb", "--nic-bandwidth", "400Gb/s",
            "--out", f"{OUT}/cluster.yaml",
        ),
        files={"topo.txt": TOPOLOGY, "slurm.conf": SLURM},
        damaged="topo.txt",
    ),
    Target(
        name="cluster import, a configuration of Slurm",
        words=("cluster", "import", "topo.txt", "slurm.conf", "--gpu", "h100-sxm-80gb", "--nic-bandwidth", "400Gb/s"),
        files={"topo.txt": TOPOLOGY, "slurm.conf": SLURM},
        damaged="slurm.conf",
    ),
    Target(
        name="models, a config.json",
        words=("models", "config.json"),
        files={"config.json": EXPERTS},
        damaged="config.json",
    ),
    Target(
        name="mem, a config.json", words=("mem", "config.json", "--tp", "2"), files={"config.json": CONFIG},
        damaged="config.json",
    ),
    Target(
        name="mem, words",
        words=("mem", "config.json", "--gpu", "l40s", "--tp", "2", "--pp", "2", "--seq-len", "1024"),
        files={"config.json": CONFIG},
    ),
    Target(
        name="init, words",
        words=("init", f"{OUT}/spec.yaml", "--model", "llama-3.1-8b", "--cluster", "dgx-h100", "--nodes", "2"),
        files={},
    ),
    Target(name="clusters, words", words=("clusters", "dgx-h100", "--format", "json"), files={}),
    Target(name="rule, words", words=("rule", "MLM101"), files={}),
    Target(name="schema, words", words=("schema", "spec", "--draft", "2020-12"), files={}),
)  # fmt: skip
