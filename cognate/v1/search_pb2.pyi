from cognate.v1 import embedding_pb2 as _embedding_pb2
from cognate.v1 import filter_pb2 as _filter_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Accuracy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCURACY_UNSPECIFIED: _ClassVar[Accuracy]
    ACCURACY_FAST: _ClassVar[Accuracy]
    ACCURACY_BALANCED: _ClassVar[Accuracy]
    ACCURACY_EXACT: _ClassVar[Accuracy]
ACCURACY_UNSPECIFIED: Accuracy
ACCURACY_FAST: Accuracy
ACCURACY_BALANCED: Accuracy
ACCURACY_EXACT: Accuracy

class Query(_message.Message):
    __slots__ = ("text", "embedding", "id", "combined")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    COMBINED_FIELD_NUMBER: _ClassVar[int]
    text: str
    embedding: _embedding_pb2.Embedding
    id: str
    combined: CombinedQuery
    def __init__(self, text: _Optional[str] = ..., embedding: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ..., id: _Optional[str] = ..., combined: _Optional[_Union[CombinedQuery, _Mapping]] = ...) -> None: ...

class CombinedQuery(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[QueryPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[QueryPart, _Mapping]]] = ...) -> None: ...

class QueryPart(_message.Message):
    __slots__ = ("text", "embedding", "id", "weight")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    text: str
    embedding: _embedding_pb2.Embedding
    id: str
    weight: float
    def __init__(self, text: _Optional[str] = ..., embedding: _Optional[_Union[_embedding_pb2.Embedding, _Mapping]] = ..., id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("queries", "index", "top_k", "min_score", "input_type", "truncation", "omit_text", "omit_attributes", "accuracy", "filter", "group_by_label", "offset", "exclude_ids")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    OMIT_TEXT_FIELD_NUMBER: _ClassVar[int]
    OMIT_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_LABEL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_IDS_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    index: str
    top_k: int
    min_score: float
    input_type: _embedding_pb2.InputType
    truncation: _embedding_pb2.Truncation
    omit_text: bool
    omit_attributes: bool
    accuracy: Accuracy
    filter: _filter_pb2.Filter
    group_by_label: bool
    offset: int
    exclude_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., index: _Optional[str] = ..., top_k: _Optional[int] = ..., min_score: _Optional[float] = ..., input_type: _Optional[_Union[_embedding_pb2.InputType, str]] = ..., truncation: _Optional[_Union[_embedding_pb2.Truncation, str]] = ..., omit_text: _Optional[bool] = ..., omit_attributes: _Optional[bool] = ..., accuracy: _Optional[_Union[Accuracy, str]] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., group_by_label: _Optional[bool] = ..., offset: _Optional[int] = ..., exclude_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "text", "label", "attributes")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    text: str
    label: str
    attributes: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., text: _Optional[str] = ..., label: _Optional[str] = ..., attributes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class QueryHits(_message.Message):
    __slots__ = ("hits", "usage")
    HITS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    usage: _embedding_pb2.TextUsage
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., usage: _Optional[_Union[_embedding_pb2.TextUsage, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "index", "fingerprint", "timings", "index_version", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[QueryHits]
    index: str
    fingerprint: str
    timings: _embedding_pb2.Timings
    index_version: str
    model: str
    def __init__(self, results: _Optional[_Iterable[_Union[QueryHits, _Mapping]]] = ..., index: _Optional[str] = ..., fingerprint: _Optional[str] = ..., timings: _Optional[_Union[_embedding_pb2.Timings, _Mapping]] = ..., index_version: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class SearchStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: SearchRequest
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[SearchRequest, _Mapping]] = ...) -> None: ...

class SearchStreamResponse(_message.Message):
    __slots__ = ("id", "first_query", "response")
    ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_QUERY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    id: int
    first_query: int
    response: SearchResponse
    def __init__(self, id: _Optional[int] = ..., first_query: _Optional[int] = ..., response: _Optional[_Union[SearchResponse, _Mapping]] = ...) -> None: ...
