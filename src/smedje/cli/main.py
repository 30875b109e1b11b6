"""The command line's root: puts the commands together, turns every failure into a line and an exit code.

Knows the nouns' names; knows nothing of what they do. Only the standard library and typer are imported before a
command runs.
"""

import sys
from collections.abc import Sequence

import typer

from smedje import __version__
from smedje.cli import (
    audit,
    chat,
    data,
    demo,
    deployments,
    doctor,
    erase,
    exits,
    files,
    hubs,
    jobs,
    keys,
    members,
    models,
    projects,
    quotas,
    retention,
    roles,
    serve,
    usage,
    users,
    webhooks,
)
from smedje.errors import SmedjeError

app = typer.Typer(
    name="smedje",
    help="The fine-tuning foundry you run yourself.",
    epilog="Every command takes --help. Start with: smedje doctor, smedje demo, smedje serve.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("chat")(chat.chat)
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(deployments.app, name="deployments")
app.add_typer(data.app, name="data")
app.add_typer(hubs.app, name="hubs")
app.add_typer(projects.app, name="projects")
app.add_typer(members.app, name="members")
app.add_typer(roles.app, name="roles")
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(quotas.app, name="quotas")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(retention.app, name="retention")
app.add_typer(erase.app, name="erase")
app.command("usage")(usage.usage)
app.add_typer(audit.app, name="audit")


@app.callback()
def root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """The fine-tuning foundry you run yourself."""
    if version:
        print(f"smedje {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(exits.USAGE)


def main() -> None:
    """The `smedje` command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run one command line; its exit code. Writes at most two lines to standard error when it fails."""
    try:
        code = app(args=list(argv), prog_name="smedje", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error)
    except SmedjeError as error:
        print("\n".join(exits.error_lines(error)), file=sys.stderr)
        return exits.exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        code = exits.INTERRUPTED
    except Exception as error:
        return exits.unexpected(error)
    if code == exits.INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else exits.OK


def _usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "smedje"
    print(f"error: {error.format_message()}\nfix: see `{path} --help`", file=sys.stderr)
    return error.exit_code
