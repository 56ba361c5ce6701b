"""What a server runs and what it takes: from flags, the environment and a TOML file."""

import difflib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cognate.devices import Device, IndexDevice, IndexGpus
from cognate.errors import CognateError
from cognate.milvus.location import Consistency, MilvusLocation, MilvusOptions
from cognate.searchable import Location, index_location
from serving.logs import LogFormat, LogLevel

DEFAULT_INDEX = "default"
"""The name of an index that is given none, and the one that a search without a name takes."""

PREFIX = "COGNATE_"
"""Of the environment's variables."""

OTHER_VARIABLES = {"API_KEY", "DEBUG", "METRICS_TARGET", "RUNS", "TARGET", "TLS_CA", "TLS_CLIENT"}
"""Those that other commands read."""

LIKENESS = 0.75
"""From which on a variable is thought a misspelt setting."""

_INDEX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _location(value: Any) -> Location:
    _check_path(value)
    try:
        return index_location(value)
    except CognateError as why:
        raise ValueError(str(why)) from None


class Settings(BaseSettings):
    """A server's settings.

    Each comes from its flag, else from ``COGNATE_`` and its name in upper case in the environment, else
    from the TOML file that ``config`` names, else from its default.

    Attributes:
        config: A TOML file with settings by name.
        bundle: The bundle's folder.
        indexes: The folder of each index, or where it is in Milvus, by name; none for a server that only
            encodes. Flags are a list of [NAME=]PATH, the environment the same with commas between, TOML a
            table or such a list. One without a name is named "default".
        host: The address to listen on. The default takes calls of this machine alone, since whoever
            reaches the port may call; 0.0.0.0 or :: takes those of others.
        port: To listen on; 0 takes any that is free.
        watch: A folder in which jobs publish versions of indexes, as watch/NAME/VERSION; the newest of each
            is served.
        watch_seconds: Between two looks into it.
        index_roots: Folders below which an index may be loaded while the server runs, beside ``watch`` and
            the folders of ``indexes``. Flags are a list, the environment the same with commas between.
        admin: Whether whoever reaches the port may load, roll back and unload indexes.
        updates: Whether calls may write records to the indexes and delete them. What they change is kept
            beside each index, and no other process can update it meanwhile.
        compact_after: Records that were written or deleted, after which an index is written anew with them
            in it, in the background.
        device: Where the model runs: "auto" takes CUDA where it is there.
        index_device: Where the indexes are searched. None: on CUDA where ``device`` is "cuda" or "tensorrt",
            on the CPU where it is another, by what is there where it is "auto".
        index_gpus: The GPUs of an index there: the first, all with a copy each, or all with a part each.
        threads: For one run of the model on the CPU. None: as many as there are cores to use.
        max_texts: Texts or queries of a call.
        max_text_bytes: Bytes of UTF-8 of a text.
        max_top_k: Hits for a query.
        max_message_bytes: Bytes of a request. As large are all that are on their way taken to be.
        max_batch_tokens: Tokens, padding included, of a batch. A batch under way is what a new call waits
            for, so that a smaller one makes for shorter waits. None: what suits the device.
        max_queue_tokens: Tokens waiting, of a priority, over which calls are refused. None: 128 full batches
            for each that the encoder runs at once.
        max_calls: Calls under way, streams included, over which others are refused.
        max_streams: Streams under way, over which others are refused.
        max_inflight_bytes: Bytes of the requests and answers under way, over which calls are refused.
        cache_bytes: Of the vectors of queries that are kept for who asks again; 0 keeps none.
        grace_seconds: How long calls that are under way may take once the server is told to stop. The
            default is less than the 30 seconds after which Kubernetes kills.
        metrics_port: For Prometheus, ``cognate top`` and the like, over HTTP; 0 takes any that is free.
            None: metrics are neither kept nor published.
        metrics_host: The address of that port, whatever ``host`` is: metrics tell the names of indexes.
        log_format: Of the log, on standard error: "text" for people, "json" for programs, an object a line.
        log_level: From which level on there is a log; "debug" has a line for each call.
        log_sample: The share of calls that have a line, 0 to 1.
        log_texts: Whether those lines tell what was asked. The texts of callers may be secret.
        channelz: Whether gRPC's own state (connections, streams, bytes) can be asked for on the port, by the
            standard service ``grpc.channelz.v1``. It tells callers the addresses of others.
        tls_certificate: PEM, the server's certificate and those between it and the root. None: no TLS.
        tls_key: PEM, its private key.
        tls_client_ca: PEM, the roots that a client's certificate must come from. None: clients need none.
        keys: A file of API keys, as ``serving.keys`` has it. None: whoever reaches the port may call.
        admin_port: Where the methods that change indexes are, and nowhere else. None: on ``port``.
        milvus_token: USER:PASSWORD or an API key for Milvus. It has no flag, for others see those.
        milvus_consistency: How new what a search in Milvus finds must be: "session" has all that this server
            wrote, "strong" all that anybody wrote, "bounded" may be some seconds behind, "eventually"
            any time.
        milvus_timeout: Seconds after which a call to Milvus is given up.
        workers: Processes that share the port, each with a model of its own. ``threads``, the queue and the
            limits of keys are each worker's.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    config: Path | None = None
    bundle: Path
    indexes: Annotated[
        dict[str, Annotated[Location, pydantic.PlainValidator(_location), pydantic.PlainSerializer(str)]],
        NoDecode,
    ] = pydantic.Field(default_factory=dict)
    watch: Path | None = None
    watch_seconds: float = pydantic.Field(default=5.0, ge=0.05, le=3600)
    index_roots: Annotated[list[Path], NoDecode] = pydantic.Field(default_factory=list)
    admin: bool = False
    updates: bool = False
    compact_after: int = pydantic.Field(default=10_000, ge=1, le=2**31 - 1)
    host: str = pydantic.Field(default="127.0.0.1", min_length=1)
    port: int = pydantic.Field(default=50051, ge=0, le=65535)
    device: Device = "auto"
    index_device: IndexDevice | None = None
    index_gpus: IndexGpus = "one"
    threads: int | None = pydantic.Field(default=None, ge=1, le=1024)
    max_texts: int = pydantic.Field(default=1024, ge=1, le=65536)
    max_text_bytes: int = pydantic.Field(default=64 * 1024, ge=1, le=16 * 1024 * 1024)
    max_top_k: int = pydantic.Field(default=1000, ge=1, le=100_000)
    max_message_bytes: int = pydantic.Field(default=4 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    max_batch_tokens: int | None = pydantic.Field(default=None, ge=1, le=16 * 1024 * 1024)
    max_queue_tokens: int | None = pydantic.Field(default=None, ge=1, le=2**31 - 1)
    max_calls: int = pydantic.Field(default=1024, ge=1, le=1024 * 1024)
    max_streams: int = pydantic.Field(default=64, ge=1, le=1024 * 1024)
    max_inflight_bytes: int = pydantic.Field(default=256 * 1024 * 1024, ge=1024, le=2**40)
    cache_bytes: int = pydantic.Field(default=16 * 1024 * 1024, ge=0, le=2**40)
    grace_seconds: float = pydantic.Field(default=20.0, ge=0, le=3600)
    metrics_port: int | None = pydantic.Field(default=None, ge=0, le=65535)
    metrics_host: str = pydantic.Field(default="127.0.0.1", min_length=1)
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    log_sample: float = pydantic.Field(default=1.0, ge=0, le=1)
    log_texts: bool = False
    channelz: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    keys: Path | None = None
    admin_port: int | None = pydantic.Field(default=None, ge=0, le=65535)
    milvus_token: pydantic.SecretStr | None = None
    milvus_consistency: Consistency = "session"
    milvus_timeout: float = pydantic.Field(default=5.0, gt=0, le=3600)
    workers: int = pydantic.Field(default=1, ge=1, le=256)

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Put the settings together.

        Args:
            flags: By name; one that is None or an empty list was not given.

        Raises:
            CognateError: A setting is missing, unknown or out of its range, or the TOML file cannot be read.
        """
        given = {name: value for name, value in flags.items() if value is not None and value != []}
        try:
            return cls(**given)
        except pydantic.ValidationError as error:
            # A misspelt name is why another is missing.
            errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
            raise CognateError(_sentence(errors[0], cls)) from None

    def said(self) -> dict[str, Any]:
        """All settings as JSON has them, the secret one too: for a worker, over a pipe."""
        secret = self.milvus_token
        token = None if secret is None else secret.get_secret_value()
        return {**self.model_dump(mode="json"), "milvus_token": token}

    @property
    def milvus(self) -> MilvusOptions:
        """How to talk to Milvus."""
        token = "" if self.milvus_token is None else self.milvus_token.get_secret_value()
        return MilvusOptions(token, self.milvus_consistency, self.milvus_timeout)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the TOML file that one of them names."""
        config = init_settings().get("config") or env_settings().get("config")
        if config is None:
            return init_settings, env_settings
        return init_settings, env_settings, _toml_source(settings_cls, Path(config))

    @pydantic.field_validator("indexes", mode="before")
    @classmethod
    def _parse_indexes(cls, value: object) -> object:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if isinstance(value, Sequence):
            value = _named(value)
        if isinstance(value, Mapping):
            for name in value:
                _check_name(str(name))
        return value

    @pydantic.field_validator("index_roots", mode="before")
    @classmethod
    def _parse_roots(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; give both, or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        for one, other in itertools.combinations(("port", "admin_port", "metrics_port"), 2):
            if (number := getattr(self, one)) and number == getattr(self, other):
                raise ValueError(f"{one} and {other} are both {number}; give each its own")
        if self.updates and self.workers > 1:
            raise ValueError("updates need one worker, since one of several only would have them")
        return self


def misspelt(environment: Iterable[str]) -> str | None:
    """What is wrong with ``COGNATE_`` variables that are like a setting's but none; None where nothing is.

    Args:
        environment: The names of its variables.
    """
    settings = {name.upper() for name in Settings.model_fields}
    given = {name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)}
    for name in sorted(given - settings - OTHER_VARIABLES):
        if name.startswith(("SERVICE_", "PORT_")):
            continue  # Kubernetes' own, of a service named cognate.
        if like := difflib.get_close_matches(name, settings, 1, LIKENESS):
            return f"{PREFIX}{name} is no setting, and is passed over; was {PREFIX}{like[0]} meant?"
    return None


def is_index_name(name: str) -> bool:
    """Whether an index may be named so: up to 64 letters, digits, dots, dashes and underscores."""
    return _INDEX_NAME.fullmatch(name) is not None


def _toml_source(settings_cls: type[BaseSettings], file: Path) -> TomlConfigSettingsSource:
    try:
        # The source passes over a file that is not there.
        with file.open("rb"):
            return TomlConfigSettingsSource(settings_cls, toml_file=file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CognateError(f"{file} is no TOML file: {error}") from None
    except OSError as error:
        raise CognateError(f"{file} cannot be read: {error.strerror}; give a TOML file") from None


def _named(values: Sequence[object]) -> dict[str, str]:
    indexes: dict[str, str] = {}
    for value in values:
        _check_path(value)
        before, equals, after = str(value).partition("=")
        # A slash before the sign makes it a part of a path.
        name, path = (before, after) if equals and "/" not in before else (DEFAULT_INDEX, str(value))
        if not path:
            raise ValueError(f"{str(value)!r} names no path; give [NAME=]PATH")
        if name in indexes:
            raise ValueError(f"two indexes are named {name!r}; give each a name of its own with NAME=PATH")
        indexes[name] = path
    return indexes


def _check_path(value: object) -> None:
    if not isinstance(value, str | Path | MilvusLocation):
        # No TypeError: pydantic makes a sentence of ValueErrors alone.
        raise ValueError(f"{value!r} is no path; give that of an index, as a string")  # noqa: TRY004


def _check_name(name: str) -> None:
    if not is_index_name(name):
        raise ValueError(
            f"{name!r} is no name for an index; use up to 64 letters, digits, dots, dashes and underscores"
        )


def _sentence(error: Any, settings: type[Settings]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"no {name} was given; give --{name}, COGNATE_{name.upper()}, or {name} in the TOML file"
    if error["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; the settings are {', '.join(settings.model_fields)}"
    if error["type"] == "value_error" and not name:
        return str(error["ctx"]["error"])
    if error["type"] == "value_error":
        return f"the setting {name} is wrong: {error['ctx']['error']}"
    if name == "milvus_token":
        return "the setting milvus_token is no string"
    message = error["msg"].replace("Input should be", "it must be", 1)
    return f"the setting {name} is {error['input']!r}; {message}"
