"""Masking of API keys and tokens in log lines."""

import re
from collections.abc import Iterable, Sequence

from collector.parsers.log.record import Record

_MASK = "***"

_KEY_FLAG = r"--(?:api-key|hf-token)|-hft"
_KEY_FLAGS = ("--api-key", "--hf-token", " -hft", '"--api-key",', '"--hf-token",')
_KEY_HINTS = ("-key", "_key", "hf", "sk-", "bearer", "authorization", "@")

_QUOTE = r"\\?[\"']"
_NAME = (
    rf"(?:(?<![\w-])(?:{_KEY_FLAG})(?:{_QUOTE})?(?:=|\s*,\s*|\s+)"
    r"|\bauthorization(?:\\?[\"'])?\s*[:=]\s*(?:bearer\s+|basic\s+)?"
    r"|\bbearer\s+"
    rf"|api[_-]key(?:{_QUOTE})?\s*[:=]\s*"
    rf"|\bhf_token(?:{_QUOTE})?\s*[:=]\s*)"
)
_QUOTED_KEY = re.compile(rf"({_NAME})({_QUOTE})((?:bearer|basic) +)?(?:(?!{_QUOTE}).)+", re.IGNORECASE)
_KEY = re.compile(
    rf"({_NAME}|\b(?=sk-[\w-]{{6}})|\b(?=hf_[a-z0-9]{{12}}))(?!{_QUOTE})[^\s\"'\\}}\]]+", re.IGNORECASE
)
_ARGUMENT = re.compile(r"\A(srv .*?load:\s+)?.*\Z", re.DOTALL)
_PASSWORD = re.compile(r"(://[^\s/:@]{1,200}:)[^\s/@]{1,200}(?=@)")


def mask_keys(records: Iterable[Record], *, key_follows: bool) -> None:
    """Replace keys in the messages of consecutive records.

    A router prints the arguments of a child one on each line, so that a key is on the line after its flag.
    Lines of children may come between the two.

    Args:
        records: the records.
        key_follows: whether the last line before them of the log's owner ended with such a flag.
    """
    waiting = {0} if key_follows else set[int]()  # ports of the processes whose next line is a key
    for record in records:
        message = record.message
        if record.port in waiting:
            record.message = _ARGUMENT.sub(rf"\1{_MASK}", message, count=1)
            waiting.discard(record.port)
        if may_contain_key(message):
            record.message = mask_text(record.message)
        if ends_with_key_flag(message):
            waiting.add(record.port)


def mask_text(text: str) -> str:
    """Return text with its keys masked."""
    text = _QUOTED_KEY.sub(rf"\1\2\3{_MASK}", text)
    text = _KEY.sub(rf"\1{_MASK}", text)
    return _PASSWORD.sub(rf"\1{_MASK}", text)


def may_contain_key(text: str) -> bool:
    """Return whether there may be a key: a fast check, because almost no line contains one."""
    lowered = text.lower()
    return any(hint in lowered for hint in _KEY_HINTS)


def ends_with_key_flag(message: str) -> bool:
    """Return whether the next argument, on the next line, is a key."""
    return message.endswith(_KEY_FLAGS)


def key_follows_after(records: Sequence[Record], *, key_follows: bool) -> bool:
    """Return whether the next line of the log's owner is a key, after these records.

    Args:
        records: in their order, as they are stored.
        key_follows: what this was before them.
    """
    for record in reversed(records):
        if record.port == 0:
            return ends_with_key_flag(record.message)
    return key_follows
