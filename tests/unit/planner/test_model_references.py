"""`model:` as a bundled name, a path, or a mapping."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.models.blocks import (
    Activation,
    DenseFeedForward,
    LatentAttention,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    SelfAttention,
)
from planner.models.bundled import bundled_models, find_bundled, model_names, nearest_names
from planner.models.specs import ModelSpec
from planner.schema.inline_model import InlineModel
from planner.schema.model import read_model
from tests.unit.planner.model_inputs import INLINE, LLAMA_8B, attention, changed, feed_forward, read, refusal, without

FORMS = "Give a bundled name (`shardwright models` lists them), the path of a config.json, or the model's sizes."


def named(reference: object, base: Path = Path()) -> ModelSpec:
    document = parse_document("schema: 1\nmodel: placeholder\n", file="spec.yaml")
    return read_model(reference, document=document, path=("model",), base=base)


def refused(reference: object, base: Path = Path()) -> InputError:
    with pytest.raises(InputError) as caught:
        named(reference, base)
    return caught.value


# Bundled names


@pytest.mark.parametrize(
    "name", ["llama-3.1-70b", "LLAMA-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", " llama-3.1-70b "]
)
def test_a_bundled_model_is_found_by_name_and_repository_in_any_case(name: str) -> None:
    assert named(name).name == "llama-3.1-70b"


def test_names_and_aliases_are_unique() -> None:
    names = [name.casefold() for model in bundled_models() for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))


def test_every_bundled_model_says_where_its_facts_are_published() -> None:
    assert all(
        model.source.startswith(("Hugging Face ", "Brown et al.", "Parmar et al.", "Adler et al."))
        for model in bundled_models()
    )
    assert model_names() == tuple(sorted(model_names()))


def test_bundled_facts_are_written_as_an_inline_model_would_be() -> None:
    for file in (Path(__file__).parents[3] / "planner" / "data" / "models").glob("*.json"):
        for name, facts in json.loads(file.read_text("utf-8")).items():
            inline = InlineModel.model_validate(without(facts, "source", "aliases", "architecture"))
            model = find_bundled(name)
            assert model is not None
            written = inline.decoder(default_name=name).spec()
            assert replace(written, architecture=model.decoder.architecture) == model.decoder.spec()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("LLAMA2-7B", "llama-2-7b"),
        ("LLaMA 70B", "llama-2-70b"),
        ("Mistral 7B", "mistral-7b-v0.1"),
        ("GPT OSS 120B", "gpt-oss-120b"),
        ("Qwen3 MoE 30B", "qwen3-30b-a3b"),
        ("DeepSeek R1 0528", "deepseek-r1"),
        ("Nemotron V3 Nano 30B", "nemotron-3-nano-30b-a3b"),
        ("InternLM-20B", "internlm-20b"),
        ("Moonlight-16B-A3B", "moonlight-16b-a3b"),
    ],
)
def test_a_model_is_found_by_the_names_that_tables_of_runs_give_it(alias: str, name: str) -> None:
    found = find_bundled(alias)
    assert found is not None
    assert found.name == name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert str(refused("lama-3.1-70b")) == (
        'spec.yaml:2:8: model: There is no bundled model and no file "lama-3.1-70b".\n'
        f"Did you mean `llama-3.1-70b` or `llama-3.3-70b` or `llama-3-70b`? {FORMS}"
    )
    assert nearest_names("x" * 100_000) == ()


def test_an_unknown_repository_is_answered_with_what_to_download() -> None:
    assert str(refused("Qwen/Qwen2.5-7B-Instruct")) == (
        'spec.yaml:2:8: model: "Qwen/Qwen2.5-7B-Instruct" is neither bundled nor a directory; '
        "nothing is fetched from the network.\n"
        "Did you mean `qwen2.5-7b` or `qwen2.5-72b` or `qwen3-vl-30b-a3b`? "
        "Otherwise download its config.json and give the path."
    )


# Paths


def test_a_directory_and_its_config_are_the_same_model(tmp_path: Path) -> None:
    directory = tmp_path / "Llama-3.1-8B"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_8B), "utf-8")
    model = named("./Llama-3.1-8B", tmp_path)
    assert model == named("Llama-3.1-8B/config.json", tmp_path)
    assert model == named(str(directory), Path("elsewhere"))
    assert (model.name, model.num_layers) == ("Llama-3.1-8B", 32)


def test_a_model_in_our_own_form_may_have_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(without(INLINE, "name")), "utf-8")
    assert named("mine.yaml", tmp_path).name == "mine"


def test_an_error_in_a_file_points_into_that_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed(LLAMA_8B, hc_mult=4), indent=2), "utf-8")
    error = refused("config.json", tmp_path)
    assert error.location is not None
    assert (error.location.file, error.location.line) == (str(tmp_path / "config.json"), 38)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    assert refused(".", tmp_path).message == 'The directory "." holds no config.json.'


def test_weights_are_not_taken_for_a_description(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    (tmp_path / "renamed").write_bytes(b"GGUF\x03\x00\x00\x00")
    for name in ("model.safetensors", "renamed"):
        error = refused(name, tmp_path)
        assert error.message == f'"{name}" holds weights, not a description of the model.'
        assert error.hint == "Give the model's config.json."


def test_a_quantisation_beside_the_config_is_known_or_refused(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_8B), "utf-8")
    (directory / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}', "utf-8")
    assert named("./model", tmp_path).num_layers == 32
    for text in ('{"quantization": {"quant_algo": "Q3"}}', "{}", "[]", '{"quantization": 8}'):
        (directory / "hf_quant_config.json").write_text(text, "utf-8")
        error = refused("./model", tmp_path)
        assert error.message.startswith("`quant_algo` = ")
        assert error.location is not None
        assert error.location.file.endswith("hf_quant_config.json")


def test_a_quantisation_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"producer": {}, "quantization": {}}), "utf-8")
    assert refused("q.json", tmp_path).message == "The file describes how a model was quantised, not the model."


@pytest.mark.parametrize("text", ["[]", "3", '"llama"'])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert refused("config.json", tmp_path).message == "The file does not hold a mapping."


@pytest.mark.parametrize(
    "text", ['{"hidden_size": 64, "num_hidden_layers": 2}', '{"torch_dtype": "bf16", "rms_norm_eps": 1e-5}']
)
def test_a_config_that_names_no_class_is_refused_for_just_that(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert refused("config.json", tmp_path).message == (
        "`architectures` is missing, and so is `model_type`: this config does not say what kind of model it is."
    )


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert refused("pipe.json", tmp_path).message == '"pipe.json" is not a regular file.'


@pytest.mark.parametrize("reference", ["x" * 10_000, "a\0b", "~nobody-has-this-name/x", "missing.json", "../nothing"])
def test_what_is_no_path_is_refused(reference: str) -> None:
    assert refused(reference).message.startswith("There is no bundled model and no file ") or (
        "neither bundled nor a directory" in refused(reference).message
    )


@pytest.mark.parametrize("reference", [None, 3, 3.5, True, [], ["llama-3.1-70b"]])
def test_what_is_neither_a_name_nor_a_mapping_is_refused(reference: object) -> None:
    assert refused(reference).message.endswith(" is neither a name nor a mapping.")
    assert refused(reference).hint == FORMS


def test_an_empty_name_is_refused() -> None:
    assert refused("").message == "The model's name is empty."


# Inline models


def test_an_inline_model_has_the_stated_defaults() -> None:
    model = read(INLINE)
    assert (model.name, model.architecture) == ("my-7b", "inline")
    assert (attention(model).head_dim, attention(model).num_key_value_heads) == (128, 8)
    assert (feed_forward(model).gated, feed_forward(model).activation) == (True, Activation.SILU)
    assert (model.norm, model.position_embedding) == (Norm.RMS, PositionEmbedding.ROPE)
    assert (model.tie_word_embeddings, model.rope_theta, model.norm_epsilon) == (False, 10000.0, 1e-5)
    assert attention(read(without(INLINE, "num_key_value_heads"))).num_key_value_heads == 32


def test_an_inline_mapping_may_be_a_whole_config() -> None:
    document = parse_document(json.dumps({"model": dict(LLAMA_8B)}), file="spec.json")
    model = read_model(LLAMA_8B, document=document, path=("model",), base=Path())
    assert model == read(LLAMA_8B)


def test_an_unknown_key_of_an_inline_model_is_refused_with_the_nearest() -> None:
    error = refusal(changed(INLINE, hidden_sise=1))
    assert error.message == "`hidden_sise` is not a known key."
    assert error.hint.startswith("Did you mean `hidden_size`? Known keys: schema, name, hidden_size, ")


def test_missing_sizes_are_all_named() -> None:
    text = str(refusal({"name": "x"}))
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert f"`{key}` is missing" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, '`hidden_size` = "4096" is not a whole number.'),
        ({"gated": 1}, "`gated` = 1 is not true or false."),
        ({"norm": "batchnorm"}, '`norm` = "batchnorm" is not a known value.'),
        ({"hidden_act": "mish"}, '`hidden_act` = "mish" is not an activation that can be planned.'),
        (
            {"num_attention_heads": 33},
            "`hidden_size` = 4096 is not a multiple of `num_attention_heads` = 33, and there is no `head_dim`.",
        ),
        ({"num_norms": 1}, "`num_norms` = 1: a layer has 2 norms, or 1 that a parallel layer shares."),
        ({"rotary_fraction": 1.5}, "The rotated part of each head, 1.5, is outside 0 to 1."),
        ({"hidden_size": 1 << 40}, "`hidden_size` = 1099511627776 is outside 1 to 1,048,576."),
        (
            {"rope_scaling": {"rope_type": "mrope"}},
            '`rope_scaling` holds "rope_type": "mrope", which is not understood.',
        ),
        ({"schema": 2}, "`schema` = 2 is not a known value."),
    ],
)
def test_a_wrong_inline_value_is_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(changed(INLINE, **changes)).message == message


def test_a_name_of_several_lines_is_refused() -> None:
    error = refusal(changed(INLINE, name="x\nrm -rf ~"))
    assert error.message == '`name` = "x\\nrm -rf ~" holds a character that cannot be printed.'


# Inline models with parts of their own

LATENT_MOE = {
    **without(INLINE, "num_key_value_heads"),
    "num_hidden_layers": 5,
    "latent_attention": {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "experts": {
        "num_experts": 64,
        "experts_per_token": 6,
        "intermediate_size": 1408,
        "shared_intermediate_size": 2816,
        "router": {"score": "sigmoid", "num_groups": 8, "groups_per_token": 4},
    },
    "kinds": {"d": {"feed_forward": "dense"}, "e": {}},
    "layers": "d e*4",
    "mtp_modules": 1,
}


def test_an_inline_model_may_have_experts_latent_attention_and_prediction_modules() -> None:
    model = read(LATENT_MOE)
    dense, sparse = model.runs
    assert (dense.count, sparse.count) == (1, 4)
    assert isinstance(dense.block.feed_forward, DenseFeedForward)
    assert isinstance(sparse.block.mixer, LatentAttention)
    assert sparse.block.mixer.num_attention_heads == 32
    experts = sparse.block.feed_forward
    assert isinstance(experts, MixtureOfExperts)
    assert (experts.num_experts, experts.experts_per_token, experts.router.num_groups) == (64, 6, 8)
    assert experts.shared is not None
    assert (experts.expert.intermediate_size, experts.shared.intermediate_size) == (1408, 2816)
    assert model.mtp is not None
    assert model.mtp.block == sparse.block


def test_layers_of_one_part_have_one_norm() -> None:
    states = {"num_heads": 64, "head_dim": 64, "state_size": 128, "num_groups": 8, "conv_kernel": 4, "chunk_size": 128}
    kinds = {
        "m": {"mixer": "state-space", "feed_forward": "none"},
        "a": {"feed_forward": "none"},
        "f": {"mixer": "none"},
    }
    model = read(changed(INLINE, num_hidden_layers=8, state_space=states, kinds=kinds, layers="(m f)*3 a f"))
    assert [type(block.mixer) for block in model.blocks[5:]] == [type(None), SelfAttention, type(None)]
    assert {block.num_norms for block in model.blocks} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "d e*5"}, "`layers` names 6 layers, `num_hidden_layers` = 5."),
        ({"layers": "d x*4"}, "`kinds` does not say what the letter 'x' stands for; it knows d, e."),
        ({"layers": "d (e"}, "`layers` cannot be read from '(e' on; "),
        ({"layers": "d*9999 e*9999"}, "`layers` spells more than 2,048 layers."),
        ({"layers": None}, "`kinds` needs `layers`, which says where each kind stands."),
        ({"intermediate_size": None}, "A layer needs `intermediate_size`, which is not given."),
        ({"latent_attention": {}}, "`kv_lora_rank` is missing in `latent_attention`."),
        ({"kinds": {"d": {"mixer": "state-space"}, "e": {}}}, "A layer needs `state_space`, which is not given."),
        ({"kinds": {"dense": {}}}, ""),
        ({"mtp_modules": 65}, "`mtp_modules` = 65 is outside 0 to 64."),
        ({"mtp_modules": -1}, "`mtp_modules` = -1 is outside 0 to 64."),
    ],
)
def test_a_wrong_part_of_an_inline_model_is_refused(changes: dict[str, object], message: str) -> None:
    assert message in str(refusal(changed(LATENT_MOE, **changes)))


@pytest.mark.parametrize(
    ("changes", "message", "path"),
    [
        ({"experts_per_token": 65}, "A token cannot visit 65 of 64 experts.", "experts.experts_per_token"),
        ({"num_experts": 0}, "A token cannot visit 6 of 0 experts.", "experts.experts_per_token"),
        ({"intermediate_size": 0}, "`intermediate_size` = 0 is outside 1 to 8,388,608.", "experts.intermediate_size"),
        (
            {"router": {"num_groups": 7}},
            "`num_experts` = 64 is not a multiple of `num_groups` = 7.",
            "experts.router.num_groups",
        ),
    ],
)
def test_wrong_experts_are_refused_with_their_place(changes: dict[str, object], message: str, path: str) -> None:
    experts = LATENT_MOE["experts"]
    assert isinstance(experts, dict)
    error = refusal(changed(LATENT_MOE, experts={**experts, **changes}))
    assert error.message == message
    assert error.location is not None
    assert error.location.path == path
