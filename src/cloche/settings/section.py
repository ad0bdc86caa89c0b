"""What all tables of settings have in common."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _means_something(cls, value: object, about: ValidationInfo) -> object:
        """Refuse what only Python can read: true as the number 1, no text as the directory here."""
        kind = cls.model_fields[about.field_name or ""].annotation
        kinds = (kind, *get_args(kind))
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError("true and false are no value of this setting")
        if isinstance(value, str) and not value.strip() and Path in kinds:
            raise ValueError("this is blank: name a file or directory, or leave it out")
        return value
