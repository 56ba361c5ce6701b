import datetime

from cognate.v1 import embedding_pb2 as _embedding_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IndexState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_STATE_UNSPECIFIED: _ClassVar[IndexState]
    INDEX_STATE_SERVING: _ClassVar[IndexState]
    INDEX_STATE_LOADING: _ClassVar[IndexState]
INDEX_STATE_UNSPECIFIED: IndexState
INDEX_STATE_SERVING: IndexState
INDEX_STATE_LOADING: IndexState

class ListIndexesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IndexDescription(_message.Message):
    __slots__ = ("name", "kind", "count", "dimension", "metric", "fingerprint", "created_at", "version", "previous_version", "state", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    count: int
    dimension: int
    metric: str
    fingerprint: str
    created_at: _timestamp_pb2.Timestamp
    version: str
    previous_version: str
    state: IndexState
    revision: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., count: _Optional[int] = ..., dimension: _Optional[int] = ..., metric: _Optional[str] = ..., fingerprint: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[str] = ..., previous_version: _Optional[str] = ..., state: _Optional[_Union[IndexState, str]] = ..., revision: _Optional[int] = ...) -> None: ...

class ListIndexesResponse(_message.Message):
    __slots__ = ("indexes",)
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedCompositeFieldContainer[IndexDescription]
    def __init__(self, indexes: _Optional[_Iterable[_Union[IndexDescription, _Mapping]]] = ...) -> None: ...

class LoadIndexRequest(_message.Message):
    __slots__ = ("name", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class LoadIndexResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: IndexDescription
    def __init__(self, index: _Optional[_Union[IndexDescription, _Mapping]] = ...) -> None: ...

class RollbackIndexRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackIndexResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: IndexDescription
    def __init__(self, index: _Optional[_Union[IndexDescription, _Mapping]] = ...) -> None: ...

class UnloadIndexRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadIndexResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Record(_message.Message):
    __slots__ = ("id", "text", "label", "attributes", "embedding")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    label: str
    attributes: _struct_pb2.Struct
    embedding: _embedding_pb2.Embedding
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., label: _Optional[str] = ..., attributes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., embedding: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("index", "records", "fingerprint", "truncation")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    index: str
    records: _containers.RepeatedCompositeFieldContainer[Record]
    fingerprint: str
    truncation: _embedding_pb2.Truncation
    def __init__(self, index: _Optional[str] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., fingerprint: _Optional[str] = ..., truncation: _Optional[_Union[_embedding_pb2.Truncation, str]] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("index", "inserted", "replaced", "superseded", "revision", "usages", "timings")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    USAGES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    index: str
    inserted: int
    replaced: int
    superseded: int
    revision: int
    usages: _containers.RepeatedCompositeFieldContainer[_embedding_pb2.TextUsage]
    timings: _embedding_pb2.Timings
    def __init__(self, index: _Optional[str] = ..., inserted: _Optional[int] = ..., replaced: _Optional[int] = ..., superseded: _Optional[int] = ..., revision: _Optional[int] = ..., usages: _Optional[_Iterable[_Union[_embedding_pb2.TextUsage, _Mapping]]] = ..., timings: _Optional[_Union[_embedding_pb2.Timings, _Mapping]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("index", "ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    index: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("index", "deleted", "revision")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    index: str
    deleted: int
    revision: int
    def __init__(self, index: _Optional[str] = ..., deleted: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...
