"""The check of a llama-server's URL in the settings."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

_LIKE_AN_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+").fullmatch


def server_url_fault(value: str) -> str | None:
    """Return what is wrong with the URL of a llama-server, or None."""
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError if it is no valid port
    except ValueError as error:
        return f"is no URL ({error})"
    if parts.scheme == "unix":
        return None if parts.path.startswith("/") and not parts.netloc else "must be unix:///PATH.sock"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must start with http://, https:// or unix:///, and name a host"
    if parts.username or parts.password:
        return "must not contain a password: put the key into api_key_file"
    if not value.isprintable() or not _is_host(parts.hostname, is_address="[" in parts.netloc):
        return "must name a host in ASCII, or a valid address"
    return "must end before ? and #" if parts.query or parts.fragment else None


def _is_host(name: str, *, is_address: bool) -> bool:
    """Return whether httpx accepts a host (no invalid address) and the resolver does (no label too long)."""
    try:
        if is_address or _LIKE_AN_ADDRESS(name):
            ip_address(name)
        name.encode("idna")
    except ValueError:
        return False
    return name.isascii()
