import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.parsers.command_line import SECRET_OPTIONS, mask_secrets, option


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        (["llama-server", "--api-key", "k1", "--port", "1"], ["llama-server", "--api-key", "***", "--port", "1"]),
        (["llama-server", "--api-key=k1"], ["llama-server", "--api-key=***"]),
        (["llama-server", "-hft", "t", "--hf-token", "u"], ["llama-server", "-hft", "***", "--hf-token", "***"]),
        (["llama-server", "--api-key"], ["llama-server", "--api-key"]),
        (["llama-server", "--port", "8080"], ["llama-server", "--port", "8080"]),
    ],
)  # fmt: skip
def test_values_of_secret_options_are_masked(arguments: list[str], masked: list[str]) -> None:
    assert mask_secrets(arguments) == masked


@given(st.lists(st.sampled_from([*SECRET_OPTIONS, "--port", "secret", "x"]), max_size=12))
def test_no_value_behind_a_secret_option_is_left(arguments: list[str]) -> None:
    masked = mask_secrets(arguments)
    assert len(masked) == len(arguments)
    for position, argument in enumerate(arguments[:-1]):
        if argument in SECRET_OPTIONS:
            assert masked[position + 1] == "***"


def test_the_last_of_a_repeated_option_counts() -> None:
    assert option(["--port", "1", "--port=2"], "--port") == "2"
    assert option(["--port"], "--port") is None
