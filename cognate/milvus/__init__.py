"""Indexes that are kept in Milvus. Only ``location`` is imported where none is: the others need pymilvus."""
