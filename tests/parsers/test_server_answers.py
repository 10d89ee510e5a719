import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import ParseError
from collector.parsers.command_line import option
from collector.parsers.server_answers import MAX_NAME_CHARACTERS, parse_models, parse_props
from tests.support.paths import RECORDINGS

HTTP = RECORDINGS / "http"


def recorded(name: str) -> str:
    return (HTTP / name).read_text()


def test_recorded_props_of_a_single_server() -> None:
    props = parse_props(recorded("single-props.json"))
    assert (props.is_router, props.build, props.can_sleep, props.has_metrics) == (False, None, True, True)
    assert props.model
    assert (props.model.name, props.model.path) == ("gemma", "/srv/models/gemma-3-270m-q4_k_m.gguf")
    assert (props.model.state, props.model.context_size) == ("loaded", 512)


def test_recorded_props_of_a_router() -> None:
    props = parse_props(recorded("router-props.json"))
    assert (props.is_router, props.max_instances, props.model) == (True, 2, None)


@pytest.mark.parametrize(
    ("recording", "states"),
    [
        ("router-models-unloaded.json", ("unloaded", "unloaded", "unloaded")),
        ("router-models-loading.json", ("unloaded", "unloaded", "loading")),
        ("router-models-loaded.json", ("unloaded", "unloaded", "loaded")),
        ("router-models-sleeping.json", ("failed", "unloaded", "sleeping")),
        ("router-models-failed.json", ("failed", "unloaded", "loaded")),
    ],
)
def test_recorded_lists_of_a_router_give_each_model_its_state(
    recording: str, states: tuple[str, ...]
) -> None:
    models = parse_models(recorded(recording))
    assert [model.name for model in models] == ["broken", "gemma-3-270m-q4_k_m", "gemma-b"]
    assert tuple(model.state for model in models) == states
    assert models[0].exit_code == (1 if states[0] == "failed" else None)
    assert models[2].path == "/srv/models/gemma-b.gguf"
    assert option(models[2].arguments, "--port") == ("0" if states[2] == "unloaded" else "40463")


@pytest.mark.parametrize(
    ("build_info", "number"),
    [
        ("b11434-1a2b3c4", 11434),
        ("b0-unknown", None),
        ("", None),
        (None, None),
        ("b9", 9),
        ("x11434", None),
        (5, None),
    ],
)
def test_a_build_number_is_read_where_there_is_one(build_info: object, number: int | None) -> None:
    assert parse_props(json.dumps({"build_info": build_info})).build == number


@pytest.mark.parametrize(
    ("alias", "path", "name"),
    [
        ("gemma", "/m/gemma-3.gguf", "gemma"),
        ("/m/gemma-3.gguf", "/m/gemma-3.gguf", "gemma-3"),
        ("gemma-3.gguf", "/m/gemma-3.gguf", "gemma-3"),
        ("", "/m/gemma-3.gguf", "gemma-3"),
        (None, None, "unknown"),
        (None, "/", "unknown"),
        ("n" * 10_000, "/m/x.gguf", "n" * MAX_NAME_CHARACTERS),
    ],
)
def test_the_name_is_the_alias_else_that_of_the_file(alias: str | None, path: str | None, name: str) -> None:
    model = parse_props(json.dumps({"model_alias": alias, "model_path": path})).model
    assert model
    assert model.name == name


def test_a_sleeping_model_sleeps() -> None:
    model = parse_props(json.dumps({"model_path": "/x.gguf", "is_sleeping": True})).model
    assert model
    assert model.state == "sleeping"


@pytest.mark.parametrize("text", ["", "[]", "5", '"x"', "{", "<html>", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    for parse in (parse_props, parse_models):
        with pytest.raises(ParseError):
            parse(text)


@pytest.mark.parametrize("escape", ["\\ud800", "\\u0000"])
def test_what_neither_sqlite_nor_a_path_takes_is_replaced(escape: str) -> None:
    model = parse_props(f'{{"model_path": "/m/a{escape}b.gguf", "model_alias": "c{escape}"}}').model
    assert model
    assert (model.name, model.path) == ("c?", "/m/a?b.gguf")
    (model,) = parse_models(
        f'{{"data": [{{"id": "d{escape}", "status": {{"args": ["-m", "/m/{escape}"]}}}}]}}'
    )
    assert (model.name, model.path) == ("d?", "/m/?")


def test_a_list_without_bound_is_refused() -> None:
    with pytest.raises(ParseError, match="too long"):
        parse_models(json.dumps({"data": [{"id": "x"}] * 6000}))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--port", "5"], "5"),
        (["--port=5"], "5"),
        (["--port"], None),
        (["--portable", "5"], None),
        ([], None),
        (["-m", "a", "--port", "5"], "5"),
        (["--port", "5", "--port=6", "--port", "7"], "7"),
        (["--port", "7", "--port"], None),
    ],
)
def test_an_option_is_found_in_either_form_and_the_last_one_counts(
    arguments: list[str], value: str | None
) -> None:
    assert option(arguments, "--port") == value


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["data", "id", "status", "args", "value", "meta", "n_ctx", "exit_code", "failed", "model_path",
                         "model_alias", "build_info", "role", "default_generation_settings"]) | st.text(max_size=3),
        inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_gives_models_or_a_parse_error(value: Any) -> None:
    text = json.dumps(value)
    for parse in (parse_props, parse_models):
        try:
            parse(text)
        except ParseError:
            continue
