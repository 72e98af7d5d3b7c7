"""`opsmesh`: all commands in one place."""

import typer

from services.cli import approvals, decisions, effects, executions, incidents, mesh, publishing, signals

app = typer.Typer(
    name="opsmesh",
    help="Let a language model help with your infrastructure without having to trust it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
mesh.register(app)
app.add_typer(signals.app, name="signals")
app.add_typer(incidents.app, name="incidents")
app.add_typer(decisions.app, name="decisions")
app.add_typer(publishing.rules_app, name="rules")
app.add_typer(publishing.policies_app, name="policies")
app.add_typer(publishing.playbooks_app, name="playbooks")
app.add_typer(executions.app, name="executions")
app.add_typer(effects.app, name="effects")
app.add_typer(approvals.app, name="approvals")
app.add_typer(mesh.certs_app, name="certs")


def main() -> None:
    """Run the command line."""
    app(prog_name="opsmesh")


if __name__ == "__main__":
    main()
