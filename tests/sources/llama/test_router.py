"""Which URLs are local. `Router` is tested with a real llama-server in tests/integration/test_router.py."""

import pytest

from collector.sources.llama.local.addresses import is_local


@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "http://127.0.0.1", "https://127.8.9.10:1", "unix:///run/llama.sock"]
)
def test_an_address_of_this_machine_is_local(url: str) -> None:
    assert is_local(url)


@pytest.mark.parametrize(
    "url", ["http://198.51.100.1:8080", "http://[2001:db8::1]:80", "https://example.org"]
)
def test_another_address_is_not_local_and_no_name_is_resolved(url: str) -> None:
    assert not is_local(url)
