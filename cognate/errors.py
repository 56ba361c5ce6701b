"""The errors that a user's input can cause: one clear sentence each, never a traceback."""


class CognateError(Exception):
    """What was wrong, where, and what to do, in one sentence that is shown as it stands."""


class RecordError(CognateError):
    """A line of a record file that cannot be read: ``file:line: why``.

    Attributes:
        source: The file's name, or ``<stdin>``.
        line: Its line, the first being 1.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(f"{source}:{line}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


class ArtifactError(CognateError):
    """A checkpoint, bundle or index that is missing, damaged, too new or in the way."""


class ModelError(CognateError):
    """A model that cannot be found, loaded or exported."""


class FingerprintError(CognateError):
    """An index whose vectors are of another model than the bundle's."""


class UnsupportedError(CognateError):
    """What the backend of an index cannot do.

    Attributes:
        field: Of a search request, that asks for it.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field} {description}")
        self.field = field
        self.description = description


class UnavailableError(CognateError):
    """The backend of an index does not answer; it may again, later."""
