"""All views: each answers one question that users ask of the database.

Every view over time has a column `timestamp` in Unix seconds. A range of it in WHERE uses the indexes of the
tables, so that only the rows of that range are read. `local_time` is the same moment as text, in the time
zone of the program that reads the view. Unknown is NULL. The SQL uses only what SQLite 3.25 of 2018 supports,
so that older programs can read the views.
"""

from collector.schema import View
from collector.views.gpu import GPU_BY_HOUR
from collector.views.models import MODEL_LOADS, MODEL_RESIDENCY, UNUSED_MODELS
from collector.views.now import NOW
from collector.views.requests import (
    CACHE_MISSES,
    FAILED_REQUESTS,
    MODEL_SPEEDS,
    REQUESTS_AND_COUNTERS,
    REQUESTS_BY_HOUR,
    SLOW_REQUESTS,
)
from collector.views.tokens import BUSY_BY_HOUR, SPEEDS, TOKEN_STEPS, TOKENS_BY_DAY, TOKENS_BY_HOUR
from collector.views.trouble import ERRORS_BY_HOUR, GAPS

VIEWS: tuple[View, ...] = (
    NOW,
    TOKENS_BY_HOUR,
    TOKENS_BY_DAY,
    SPEEDS,
    BUSY_BY_HOUR,
    GPU_BY_HOUR,
    MODEL_LOADS,
    MODEL_RESIDENCY,
    UNUSED_MODELS,
    REQUESTS_BY_HOUR,
    SLOW_REQUESTS,
    FAILED_REQUESTS,
    CACHE_MISSES,
    MODEL_SPEEDS,
    REQUESTS_AND_COUNTERS,
    ERRORS_BY_HOUR,
    GAPS,
    TOKEN_STEPS,
)
