"""Lengths of time as users write them."""

import argparse
import re

_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(text: str) -> int:
    """Return the seconds of a duration like 24h."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: write 30m, 24h, 7d or 4w")
    return int(match[1]) * _UNIT_SECONDS[match[2]]
