"""Projects on the wire: make, list, look at, change, archive and delete them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanCreateProjects, CanReadHubs
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import Project
from smedje.services import hubs as service

LIST_QUERY = frozenset({"hub"})

router = APIRouter(prefix="/api/projects", tags=["projects"])

Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str | None, Field(max_length=4096)]


class ProjectWords(Body):
    """What is said of a project, and may be changed."""

    display_name: Text = None
    description: Text = None
    tags: dict[str, str] | None = None


class ProjectBody(ProjectWords):
    """A new project. hub: name or id; the caller's own when left out."""

    name: Name
    hub: Annotated[str | None, Field(max_length=256)] = None


class ProjectUpdate(ProjectWords):
    """A project's change: what is left out stays. archived: whether it is read-only."""

    archived: bool | None = None


class ProjectObject(BaseModel):
    """A project. Its id goes into the header OpenAI-Project."""

    id: str
    object: Literal["project"] = "project"
    name: str
    display_name: str
    description: str
    hub_id: str
    tags: dict[str, str]
    created_at: int
    archived_at: int | None


class ProjectList(BaseModel):
    """Every project that the caller may read; never paged."""

    object: Literal["list"] = "list"
    data: list[ProjectObject]


class ProjectDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["project"] = "project"
    deleted: bool = True


def to_object(project: Project) -> ProjectObject:
    """The wire form of a project."""
    return ProjectObject.model_validate({name: value for name, value in vars(project).items() if name != "deleted_at"})


def to_form(body: ProjectWords) -> service.ProjectForm:
    """What the body says about a project."""
    return service.ProjectForm(display_name=body.display_name, description=body.description, tags=body.tags)


@router.post("")
def create_project(caller: CanCreateProjects, ctx: Using, body: ProjectBody) -> ProjectObject:
    """Make a project in a hub."""
    return to_object(service.create_project(ctx, caller, hub=body.hub, name=body.name, form=to_form(body)))


@router.get("")
def list_projects(caller: CanReadHubs, ctx: Using, request: Request, hub: str | None = None) -> ProjectList:
    """The projects that the caller may read, of one hub or of all."""
    refuse_unknown_query(request, LIST_QUERY)
    return ProjectList(data=[to_object(one) for one in service.list_projects(ctx, caller, hub=hub)])


@router.get("/{project}")
def get_project(caller: CanReadHubs, ctx: Using, project: str) -> ProjectObject:
    """One project, by id."""
    return to_object(service.get_project(ctx, caller, project))


@router.patch("/{project}")
def update_project(caller: CanReadHubs, ctx: Using, project: str, body: ProjectUpdate) -> ProjectObject:
    """Change a project's words or tags, or archive it. Needs project.write in that project."""
    return to_object(service.update_project(ctx, caller, project, to_form(body), archived=body.archived))


@router.delete("/{project}")
def delete_project(caller: CanReadHubs, ctx: Using, project: str) -> ProjectDeleted:
    """Delete a project that holds nothing any more. Needs project.write in that project."""
    return ProjectDeleted(id=service.delete_project(ctx, caller, project).id)
