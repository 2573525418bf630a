"""How does the daemon speak of itself?

Events with fields, as lines for a person or JSON for a machine.
"""

import logging
import sys

import structlog

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(level: str) -> None:
    """Send everything that the daemon and its libraries log to standard error, once."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _take_extra,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # The library formats whole messages at its debug level, warns of what the gate does on purpose,
    # and takes a peer that speaks no gossip for an error. What matters of it, its adapters say.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    for noisy in ("hypercorn", "multiaddr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _take_extra(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Take over the fields that a log call gave as `extra`."""
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        event.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    return event
