"""Tokens a second, out of two counters that move only when a request finishes."""

from math import isfinite

from collector.parsers.exposition import resolution

MEANINGFUL_STEPS = 20
"""A difference counts from this many times the printed resolution: an error of 5 % at most each."""


class TokenSpeed:
    """The speed over the interval in which both counters moved.

    A counter that fell was restarted from 0: what it shows now happened since.
    """

    def __init__(self) -> None:
        self._anchor: tuple[float, float] | None = None
        self._in_doubt = False

    def restart(self) -> None:
        """The counters are known to have started at 0 since the last update."""
        self._anchor = (0.0, 0.0)

    def doubt(self) -> None:
        """The counters may have been restarted since the last update: only if they fell is it certain."""
        self._in_doubt = True

    def update(self, tokens: float | None, seconds: float | None) -> float | None:
        """Take the two counters as they stand now.

        Args:
            tokens: tokens processed so far; None where the server gives no such counter.
            seconds: time spent on them so far.

        Returns:
            tokens a second, or None where no request finished, or too little to say.
        """
        if tokens is None or seconds is None:
            return None
        if self._anchor and (tokens < self._anchor[0] or seconds < self._anchor[1]):
            self.restart()
        elif self._anchor is None or self._in_doubt:
            self._anchor = (tokens, seconds)
        self._in_doubt = False
        more_tokens, more_seconds = tokens - self._anchor[0], seconds - self._anchor[1]
        if not (_tells(more_tokens, tokens, whole=True) and _tells(more_seconds, seconds, whole=False)):
            return None
        self._anchor = (tokens, seconds)
        speed = more_tokens / more_seconds
        return speed if isfinite(speed) else None


def _tells(difference: float, counter: float, *, whole: bool) -> bool:
    return difference > 0 and difference >= MEANINGFUL_STEPS * resolution(counter, whole=whole)
