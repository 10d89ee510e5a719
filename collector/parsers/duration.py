"""Lengths of time, and moments, as users write them."""

import argparse
import re
import time
from contextlib import suppress
from datetime import datetime

_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(text: str) -> int:
    """Return the seconds of a duration like 24h."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: write 30m, 24h, 7d or 4w")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def parse_moment(text: str) -> float:
    """Return the Unix seconds of a moment: 2026-11-26 18:30 (local, unless a zone follows) or 7d (ago)."""
    with suppress(argparse.ArgumentTypeError):
        return time.time() - parse_duration(text)
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2026-11-26 18:30, or 7d for a week ago")
