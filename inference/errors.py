"""Why can a model not answer? The error tree of inference; `peer/` maps it to reasons of tasks."""


class ModelError(Exception):
    """Anything that goes wrong while thinking locally."""


class BadRequest(ModelError):
    """The skill's input cannot be worked on; says what was found and what is allowed."""


class BadModel(ModelError):
    """A file is not a model that can be loaded; says why, and what to do."""


class NoModel(ModelError):
    """This device has no such model."""


class TooLong(ModelError):
    """The input does not fit the model's context; says how long it is and what fits."""


class Unsupported(ModelError):
    """The engine cannot do this; says which can."""


class Busy(ModelError):
    """Too many requests wait already."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerDied(ModelError):
    """The process that held the model ended in the middle of the work."""


class OutOfMemory(WorkerDied):
    """The model's process ran into its memory limit."""


class TookTooLong(ModelError):
    """The model did not answer within the request's deadline."""
