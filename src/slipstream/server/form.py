"""Reading multipart forms: bounded while they are read; files over a megabyte wait on the disk, not in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from slipstream.errors import RequestError, TooLarge
from slipstream.server.body import Disconnected

_MAX_FIELDS = 64
_MAX_FILES = 17  # OpenAI's most images of an edit, and a mask: what is too many here can be said with the reason
_MAX_FIELD_BYTES = 256 * 2**10


@dataclass(frozen=True)
class Form:
    """A form's fields and files by name. A name with [] at its end, which clients give to lists, is kept without."""

    fields: dict[str, str]
    files: dict[str, list[UploadFile]]


@asynccontextmanager
async def read_form(request: Request, limit: int) -> AsyncIterator[Form]:
    """The form, whose files are there for as long as the block runs.

    Raises TooLarge over `limit` bytes in all, and RequestError for what is no such form, or says a field twice.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise RequestError("send this request as multipart/form-data", code="invalid_form")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    reader = Request(request.scope, bounded)
    try:
        async with reader.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as items:
            form = Form({}, {})
            for given, value in items.multi_items():
                _add(form, given.removesuffix("[]"), value)
            yield form
    except ClientDisconnect:
        raise Disconnected from None
    except HTTPException as error:
        raise RequestError(f"the form cannot be read: {error.detail}", code="invalid_form") from None
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}", code="invalid_form") from None


def _add(form: Form, name: str, value: str | UploadFile) -> None:
    if name in form.fields or (isinstance(value, str) and name in form.files):
        raise RequestError(f"{name} is there more than once: one is taken", param=name, code="invalid_form")
    if isinstance(value, str):
        form.fields[name] = value
    else:
        form.files.setdefault(name, []).append(value)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit} bytes", code="body_too_large")
