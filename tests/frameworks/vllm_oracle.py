# ruff: noqa: PLC0415 - vLLM can be imported only after what it lacks here has been stood in for
"""vLLM's own verdict on a `vllm serve` command, without a GPU. Runs inside vLLM's own environment only.

Reads one JSON list of jobs on standard input, writes one JSON list of verdicts on standard output. A job is
`{"arguments": [...], "config_text": YAML or null, "model": config.json as an object or null, "gpus_per_node": n,
"gpu_name": text, "capability": [major, minor], "memory_bytes": n, "last_level": parse | heads, "ray": whether Ray is
there}`. The arguments are those after `serve`; the file behind `--config` is the job's text, and the model is a folder
with the job's config.json, whatever the command calls it. Each job runs in a fork, so that vLLM is imported once for a
kind of GPU and its globals are fresh. The levels:

1. parse: the parser of `vllm serve`, `--config` included, and `validate_parsed_serve_args`;
2. engine_config: `AsyncEngineArgs.create_engine_config`, as on a node with the job's GPUs;
3. heads: what vLLM asks of the model's configuration only in its workers: key-value heads and layers of one rank.

A job without a model is judged by its parse alone, as is one whose `last_level` says so. One that wants packages that
are not here (Ray, unless the job says that it is; for many models of images, torchvision) or more of a GPU than is
stood in for gets the level `not_judged`, which is no refusal."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.frameworks import vllm_platform
from tests.frameworks.forks import answer_in_a_fork
from tests.frameworks.vllm_platform import Gpu

CONFIG_NAME = "serve.yaml"
MISSING = re.compile(r"No module named|requires the NIXL package")
"""What vLLM says of packages that are not here."""

MULTIPROCESSORS = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command and the node it is meant for."""

    arguments: list[str]
    config_text: str | None
    model: dict[str, Any] | None
    gpus_per_node: int
    gpu_name: str
    capability: tuple[int, int]
    memory_bytes: int
    last_level: str = "heads"
    ray: bool = False
    draft: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What vLLM said; `failed_level` is empty when every level passed. `resolved` is what it made of the command."""

    failed_level: str = ""
    error: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)


class RefusalError(Exception):
    """A level failed; carries vLLM's own words."""

    def __init__(self, level: str, error: str) -> None:
        super().__init__(error)
        self.level = level
        self.error = error


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Turn whatever vLLM raises inside into a refusal at this level; its chatter is swallowed."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            yield
    except SystemExit:
        last = (chatter.getvalue().strip().splitlines() or ["exited"])[-1]
        raise RefusalError(name, last) from None
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its answer
        words = " ".join(str(error).split()) or type(error).__name__
        missing = isinstance(error, AttributeError | ImportError) or MISSING.search(words) is not None
        raise RefusalError("not_judged" if missing else name, words) from None


def judge(job: Job) -> Verdict:
    """Return what vLLM says about one job."""
    verdict = Verdict()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _judge(job, Path(folder), verdict)
        except RefusalError as refusal:
            verdict.failed_level, verdict.error = refusal.level, refusal.error
    return verdict


def _gpu(job: Job) -> Gpu:
    return Gpu(
        name=job.gpu_name,
        capability=job.capability,
        memory_bytes=job.memory_bytes,
        count=job.gpus_per_node,
        multiprocessors=MULTIPROCESSORS,
    )


def _judge(job: Job, folder: Path, verdict: Verdict) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    vllm_platform.claim(_gpu(job))
    if job.ray:
        vllm_platform.claim_ray()
    with level("parse"):
        parser, _ = vllm_platform.serve_parser()
        args = parser.parse_args(["serve", *_with_file(job, folder)])
        args.model = args.model_tag or args.model
        vllm_platform.validate(args)
    if job.model is None or job.last_level == "parse":
        return
    (folder / "config.json").write_text(json.dumps(job.model), encoding="utf-8")
    args.model = args.model_tag = str(folder)
    if job.draft is not None:
        (folder / "draft").mkdir()
        (folder / "draft" / "config.json").write_text(json.dumps(job.draft), encoding="utf-8")
        args.speculative_config["model"] = str(folder / "draft")
    with level("engine_config"):
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    parallel, scheduler, model = config.parallel_config, config.scheduler_config, config.model_config
    verdict.resolved = {
        "world_size": parallel.world_size,
        "data_parallel_size": parallel.data_parallel_size,
        "data_parallel_size_local": parallel.data_parallel_size_local,
        "enable_expert_parallel": parallel.enable_expert_parallel,
        "redundant_experts": parallel.eplb_config.num_redundant_experts if parallel.enable_eplb else None,
        "distributed_executor_backend": str(parallel.distributed_executor_backend),
        "data_parallel_backend": parallel.data_parallel_backend,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_model_len": model.max_model_len,
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
    }
    speculative = config.speculative_config
    if speculative is not None:
        verdict.resolved |= {
            "draft_method": speculative.method,
            "num_speculative_tokens": speculative.num_speculative_tokens,
            "draft_tensor_parallel_size": speculative.draft_parallel_config.tensor_parallel_size,
        }
    with level("heads"):
        _check_heads(model, parallel, verdict)


def _check_heads(model: Any, parallel: Any, verdict: Verdict) -> None:
    """Raise what only a worker would find out."""
    heads, tp = model.get_total_num_kv_heads(), parallel.tensor_parallel_size
    if heads % tp and tp % heads:
        raise ValueError(f"{heads} key-value heads neither divide nor are divided by tensor_parallel_size {tp}")
    verdict.resolved |= {
        "kv_heads_of_a_rank": model.get_num_kv_heads(parallel),
        "layers_of_a_rank": model.get_num_layers(parallel),
    }


def _with_file(job: Job, folder: Path) -> list[str]:
    """Return the arguments with the file that stands in for the one behind --config."""
    arguments = list(job.arguments)
    if job.config_text is None:
        return arguments
    path = folder / CONFIG_NAME
    path.write_text(job.config_text, encoding="utf-8")
    arguments[arguments.index("--config") + 1] = str(path)
    return arguments


LEARN = """
import json, sys
from vllm.model_executor.models import registry

registry._run_in_subprocess = lambda find: find()  # this is one
unknown = {}
for name in sys.argv[1:]:
    if name in registry.ModelRegistry.models:
        try:
            registry.ModelRegistry.models[name].inspect_model_cls()
        except ImportError as error:
            unknown[name] = str(error)
print(json.dumps(unknown))
"""


def learn_models(jobs: list[Job]) -> dict[str, str]:
    """Let vLLM find out what the models' classes can do, on the platform that is truly there, and keep it in a file.

    vLLM imports a model's class for that, which wants the platform's kernels. Returns which classes want packages that
    are not here, and what is missing.
    """
    names = {name for job in jobs for name in architectures(job)}
    learnt = {path.stem.rpartition("-")[2] for path in Path(os.environ["VLLM_CACHE_ROOT"]).glob("modelinfos/*.json")}
    if names <= learnt:
        return {}
    command = [sys.executable, "-c", LEARN, *sorted(names - learnt)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    unknown: dict[str, str] = json.loads(said.splitlines()[-1])
    return unknown


def architectures(job: Job) -> tuple[str, ...]:
    """Return the names of the model's classes, where they matter."""
    return tuple((job.model or {}).get("architectures", ())) if job.last_level != "parse" else ()


def judge_all(jobs: list[Job]) -> list[Verdict]:
    """Return the verdicts on jobs for one GPU; vLLM is imported here, as it asks about the GPU while it is."""
    vllm_platform.stand_in_for_kernels()
    vllm_platform.claim(_gpu(jobs[0]))
    vllm_platform.claim_triton()
    vllm_platform.serve_parser()
    whole = next((job for job in jobs if job.model is not None and job.last_level != "parse"), jobs[0])
    for name in answer_in_a_fork(_modules_after, whole):
        importlib.import_module(name)
    return [_judge_apart(job) for job in jobs]


def _judge_apart(job: Job) -> Verdict:
    try:
        return answer_in_a_fork(judge, job)
    except ChildProcessError as death:
        return Verdict(failed_level="crash", error=str(death))


def _modules_after(job: Job) -> list[str]:
    """Return vLLM's modules that a job needs besides those that are there: imported once, they cost no other job."""
    before = set(sys.modules)
    judge(job)
    return sorted(name for name in set(sys.modules) - before if name.startswith(("vllm.", "transformers.")))


def main() -> None:
    """Judge every job on standard input; those for one GPU share a process."""
    vllm_platform.quiet()
    jobs = [Job(**{**job, "capability": tuple(job["capability"])}) for job in json.load(sys.stdin)]
    missing = learn_models(jobs)
    verdicts: dict[int, Verdict] = {}
    of_gpu: dict[tuple[Any, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        wanting = [missing[name] for name in architectures(job) if name in missing]
        if wanting:
            verdicts[index] = Verdict(failed_level="not_judged", error=wanting[0])
        else:
            of_gpu.setdefault((job.gpu_name, job.capability, job.memory_bytes), []).append(index)
    for chosen in of_gpu.values():
        found = answer_in_a_fork(judge_all, [jobs[index] for index in chosen])
        verdicts |= dict(zip(chosen, found, strict=True))
    json.dump([dataclasses.asdict(verdicts[index]) for index in range(len(jobs))], sys.stdout)


if __name__ == "__main__":
    main()
