"""The files of a fine-tuned model or checkpoint on the wire: the adapter in PEFT's format and a model card."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from smedje.api.auth import CanReadModels
from smedje.api.state import Using
from smedje.services import model_files as service

router = APIRouter(prefix="/api/models", tags=["models"])


class ModelFileObject(BaseModel):
    """One file of a model."""

    object: Literal["model.file"] = "model.file"
    name: str
    bytes: int


class ModelFileList(BaseModel):
    """All files of a model; never paged. base_model: what the adapter belongs to."""

    object: Literal["list"] = "list"
    base_model: str
    data: list[ModelFileObject]


@router.get("/{model}/files")
def list_model_files(caller: CanReadModels, ctx: Using, model: str) -> ModelFileList:
    """The card and the adapter's two files."""
    base, found = service.list_model_files(ctx, caller.project, model)
    return ModelFileList(base_model=base, data=[ModelFileObject(name=one.name, bytes=one.bytes) for one in found])


@router.get("/{model}/files/{file}", response_class=StreamingResponse)
def get_model_file(caller: CanReadModels, ctx: Using, model: str, file: str) -> StreamingResponse:
    """The bytes of one of them."""
    pieces = service.read_model_file(ctx, caller.project, model, file)
    headers = {"content-disposition": "attachment"}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
