"""What an address asks of the execution logs: the filter, and what a page needs besides."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, ValidationError
from starlette.requests import Request

from cloche.logs.read.document import Format
from cloche.logs.read.filter import Filled, LogFilter, refused
from cloche.logs.read.reader import PAGE


class LogsQuery(LogFilter):
    """Parameters of an address. Raises LogQueryError that says which one is wrong."""

    limit: int = Field(100, ge=1, le=PAGE, description="Records of a page")
    before: Annotated[UUID | None, Filled] = Field(
        None, description="Records older than the one of this id"
    )
    after: Annotated[UUID | None, Filled] = Field(
        None, description="Records newer than the one of this id"
    )
    format: Format = Field("jsonl", description="Of an export: jsonl or csv")
    live: Literal["", "1"] = Field("", description="Of the page: 1 shows records as they arrive")

    @classmethod
    def asked(cls, request: Request, **fixed: str) -> Self:
        """What the address of ``request`` asks, with ``fixed`` fields from its path."""
        try:
            return cls.model_validate({**request.query_params, **fixed})
        except ValidationError as error:
            raise refused(error, cls) from None

    @property
    def filter(self) -> LogFilter:
        return LogFilter(**{name: getattr(self, name) for name in LogFilter.model_fields})


def uuid_of(text: str) -> UUID | None:
    """The id written there, if it is one."""
    try:
        return UUID(text)
    except ValueError:
        return None


def parameters(*names: str) -> list[dict[str, object]]:
    """Those parameters, and all of the filter, as OpenAPI describes them."""
    properties = LogsQuery.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": properties[name].pop("description", ""),
            "schema": properties[name],
        }
        for name in (*LogFilter.model_fields, *names)
    ]
