"""All views: named answers to the questions that people ask of the database.

Each has Unix seconds as `timestamp`. A range of it in WHERE uses the indexes of the tables, so that only the
rows of that range are read. `local_time` is the same for people, in the time zone of the program that reads.
Unknown is NULL. The SQL is plain enough for readers as old as SQLite 3.8.3.
"""

from collector.schema import View
from collector.views.gpu import GPU_BY_HOUR
from collector.views.models import MODEL_LOADS, MODEL_RESIDENCY, UNUSED_MODELS
from collector.views.now import NOW
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
    ERRORS_BY_HOUR,
    GAPS,
    TOKEN_STEPS,
)
