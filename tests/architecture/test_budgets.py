"""The size and shape budgets of the code. An exception stands here, with its reason, or there is none."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator

from source_tree import ROOT, Module, base_name, parameters, product_modules, script_modules, test_modules

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 6
CONFIG_FIELDS = 20
IN_HOUSE_ANCESTORS = 2
KWARGS_SHARE = 0.01

# module:function -> why it may be longer or take more parameters.
LONGER_FUNCTIONS = {
    "smedje.cli.jobs:create": "a command's options are its parameters: typer reads the signature",
}
MORE_PARAMETERS = {
    "smedje.cli.jobs:create": "a command's options are its parameters: typer reads the signature",
    "smedje.cli.chat:chat": "a command's options are its parameters: typer reads the signature",
    **dict.fromkeys(
        ("smedje.cli.data_change:repair", "smedje.cli.data_change:import_rows", "smedje.cli.files_change:repair"),
        "a command's options are its parameters: typer reads the signature",
    ),
    "smedje.api.openai.files:list_files": "a route's query is its parameters: FastAPI reads the signature",
}
# class -> why it may have several bases.
SEVERAL_BASES = frozenset({"Protocol", "Generic", "StrEnum", "IntEnum", "Enum", "Exception", "TypedDict"})

# The control plane's run-time dependencies, each with the reason why we do not write it ourselves.
DEPENDENCIES = {
    "alembic": "schema changes of a database that people keep",
    "argon2-cffi": "passwords of local accounts, hashed as OWASP asks",
    "authlib": "sign-in through an OpenID Connect provider: key sets, tokens, their checks",
    "fastapi": "routes, validation and the OpenAPI schema",
    "httpx2": "HTTP client of the command line, the same one that the official clients use",
    "huggingface_hub": "downloads from a model hub with resume and checksums",
    "jinja2": "chat templates are written in it; its sandbox runs them",
    "msgspec": "JSON at the speed of uploads, strict about unknown fields",
    "obstore": "local disk, S3, Azure Blob and GCS behind one interface",
    "platformdirs": "where state lives on each system",
    "prometheus-client": "the metrics format that monitoring reads",
    "psutil": "memory, and finding a worker again after a restart",
    "pysqlite3": "a SQLite without the write-ahead-log corruption that the system's may have",
    "python-multipart": "FastAPI reads uploaded forms with it",
    "rich": "tables and progress on a terminal",
    "sqlalchemy": "SQLite and PostgreSQL from one set of queries",
    "tokenizers": "the models' own tokenizers",
    "typer": "the command line",
    "uvicorn": "the HTTP server",
}
# Imported directly though not declared, because they are part of a declared package's interface.
THROUGH_ANOTHER = {
    "pydantic": "fastapi",
    "starlette": "fastapi",
    "anyio": "starlette",
    "argon2": "argon2-cffi",
    "joserfc": "authlib",
    "mlflow": "mlflow-skinny",
}


def product() -> tuple[Module, ...]:
    """The code that ships, and the scripts beside it."""
    return product_modules() + script_modules()


def lines_of(node: ast.AST) -> int:
    """How many lines a definition takes, without its decorators."""
    assert isinstance(node, ast.stmt)
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_file_is_longer_than_400_lines() -> None:
    """A file fits in one reading; tests count too."""
    found = {m.name: m.text.count("\n") for m in product() + test_modules() if m.text.count("\n") > FILE_LINES}
    assert not found


def test_no_function_is_longer_than_60_lines() -> None:
    """A function fits on one screen, unless it is listed with its reason."""
    found = {
        f"{m.name}:{name}": lines_of(node)
        for m in product()
        for name, node in m.functions()
        if lines_of(node) > FUNCTION_LINES
    }
    assert found.keys() <= LONGER_FUNCTIONS.keys(), found


def test_no_function_takes_more_than_six_parameters() -> None:
    """Many parameters want to be a value, unless the function is listed with its reason."""
    found = {
        f"{m.name}:{name}": len(parameters(node))
        for m in product()
        for name, node in m.functions()
        if len(parameters(node)) > PARAMETERS
    }
    assert found.keys() <= MORE_PARAMETERS.keys(), found


def test_no_configuration_class_has_more_than_20_fields() -> None:
    """Dataclasses and structs stay small. Wire shapes (pydantic models) have the fields that their API has."""
    found = {}
    for module in product():
        for node in module.classes():
            decorators = {base_name(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
            if "dataclass" in decorators or "Struct" in map(base_name, node.bases):
                count = sum(isinstance(part, ast.AnnAssign) for part in node.body)
                if count > CONFIG_FIELDS:
                    found[f"{module.name}:{node.name}"] = count
    assert not found


def test_inheritance_is_at_most_two_deep() -> None:
    """No class has more than two ancestors of ours; several bases are for protocols, enums and errors only."""
    bases = {node.name: [base_name(b) for b in node.bases] for m in product() for node in m.classes()}
    ours = {
        node.name: [name for name in bases[node.name] if name in bases and name not in foreign_names(module)]
        for module in product()
        for node in module.classes()
    }
    assert len(bases) > 50

    def ancestors(name: str) -> int:
        return max((1 + ancestors(base) for base in ours[name] if base != name), default=0)

    deep = {name: ancestors(name) for name in bases if ancestors(name) > IN_HOUSE_ANCESTORS}
    several = {name: found for name, found in bases.items() if len(found) > 1 and not set(found) & SEVERAL_BASES}
    assert not deep
    assert not several


def foreign_names(module: Module) -> set[str]:
    """What a module imports from elsewhere by name: pydantic's BaseModel is not ours."""
    imports = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)]
    return {a.asname or a.name for node in imports if not (node.module or "").startswith("smedje") for a in node.names}


def forbidden(module: Module) -> Iterator[str]:
    """Every use of global state, run-time code, imports by string, and every change to something foreign."""
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(module.tree):
        where = f"{module.name}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Global(names=names):
                yield f"{where} global {names}"
            case ast.Call(func=ast.Name(id="exec" | "eval" | "__import__" as name)):
                yield f"{where} {name}()"
            case ast.Call(func=ast.Name(id="setattr"), args=[first, *_]) if ast.unparse(first) != "self":
                yield f"{where} setattr on {ast.unparse(first)}"
            case ast.Call(func=ast.Attribute(attr="import_module")) | ast.Call(func=ast.Name(id="import_module")):
                yield f"{where} import by string"
            case ast.Assign(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Attribute) and ast.unparse(target).split(".")[0] in imported:
                        yield f"{where} changes {ast.unparse(target)}"


def test_no_global_state_run_time_code_or_patching() -> None:
    """No `global`, exec, eval, import by string, setattr on foreign objects or assignment into another module."""
    assert not [line for module in product() for line in forbidden(module)]


def test_almost_no_function_takes_kwargs() -> None:
    """At most one function in a hundred takes **kwargs: an open parameter list hides what is accepted."""
    every = [(m.name, name, node) for m in product() for name, node in m.functions()]
    found = [f"{module}:{name}" for module, name, node in every if node.args.kwarg is not None]
    assert len(found) <= KWARGS_SHARE * len(every), found


def test_every_parameter_and_result_is_annotated() -> None:
    """Types are complete, so that the strict checker sees everything."""
    found = [
        f"{m.name}:{name}"
        for m in product()
        for name, node in m.functions()
        if node.returns is None
        or any(a.annotation is None for a in [*parameters(node), *filter(None, [node.args.vararg, node.args.kwarg])])
    ]
    assert not found


def imports(module: Module, known: frozenset[str]) -> set[str]:
    """The modules of ours that a module imports when it is itself imported or run, types aside."""
    found: set[str] = set()
    hidden = [
        node for node in ast.walk(module.tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in hidden for inner in ast.walk(node)}
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known or {node.module} & known
    return found - {module.name}


def test_there_are_no_import_cycles() -> None:
    """No module of ours imports itself by way of others, imports inside functions included."""
    modules = product_modules()
    known = frozenset(m.name for m in modules)
    waiting = {m.name: imports(m, known) for m in modules}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


def test_control_plane_dependencies_are_few_and_each_has_a_reason() -> None:
    """What installs without extras is exactly the listed 20 packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in project["dependencies"]}
    assert declared == DEPENDENCIES.keys()
    assert len(declared) <= 20


def imported_packages(module: Module) -> set[str]:
    """The top-level names of everything that a module imports."""
    names: list[str] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[0] for name in names}


def test_every_imported_package_is_declared() -> None:
    """Nothing is imported that arrives only by way of another package, save where that is the other's interface."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower().replace("-", "_") for line in lines}
    fine = declared | THROUGH_ANOTHER.keys() | sys.stdlib_module_names | {"smedje"}
    found = {f"{m.name}: {top}" for m in product_modules() for top in imported_packages(m) if top not in fine}
    assert not found
