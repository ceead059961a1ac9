"""Structured logs: one JSON object a line on standard error, with the request id of the work in hand.

A log line carries names, numbers and reasons only: any other value is shown as its type, and a defect by the type and
place of its exceptions, because a foreign message may quote a secret that it was given.
"""

import logging
import sys
import traceback
import warnings
from typing import Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from appliance.errors import ApplianceError

_PLAIN: Final = (str, int, float, bool, type(None))
_MAX_TEXT: Final = 500
"""Characters of one value; a log is no place for documents."""


def configure(service: str) -> None:
    """Sends this process's logs to standard error as `service`, also Python's and libraries' warnings and worse."""

    def name_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {"service": service, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_service,
            _place_exceptions,
            _plain_values,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)
    # Not logging.captureWarnings: its lines have the warning's text.
    warnings.showwarning = _tell_warning


def get() -> FilteringBoundLogger:
    """The logger; events are short sentences, their values keywords."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def bind(**values: str) -> None:
    """Adds values, such as `request_id`, to every later line of this task, also of tasks that it starts."""
    structlog.contextvars.bind_contextvars(**values)


def bound(name: str) -> str:
    """The value of this name that was bound, or ""."""
    return str(structlog.contextvars.get_contextvars().get(name, ""))


class _Library(logging.Handler):
    """Takes what libraries log: the first line of a message's template, never the values put into it."""

    def emit(self, record: logging.LogRecord) -> None:
        template = str(record.msg).partition("\n")[0]
        get().log(record.levelno, template, logger=record.name, exc_info=record.exc_info)


def _tell_warning(
    message: Warning | str,  # noqa: ARG001 (it may quote values)
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,  # noqa: ARG001 (these lines go to standard error)
    line: str | None = None,  # noqa: ARG001 (a source line may hold values too)
) -> None:
    """Tells of a warning what is told of a defect: type and place."""
    get().warning("python warning", category=category.__qualname__, place=f"{filename}:{lineno}")


def _place_exceptions(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replaces `exc_info` by where each exception of the chain was raised."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    error = given if isinstance(given, BaseException) else (given[1] if isinstance(given, tuple) else sys.exception())
    places = []
    while error is not None:
        told = str(error) if isinstance(error, ApplianceError) else type(error).__qualname__
        frames = traceback.extract_tb(error.__traceback__)
        places.append(f"{told} at " + " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames)))
        error = error.__cause__ or error.__context__
    return {**event, "exceptions": places}


def _plain_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _plain(value) for name, value in event.items()}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else f"<{type(value).__qualname__}>"
