"""`opsmesh`: all commands in one place. A group is imported when it is used, so that every command starts fast."""

import importlib
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from services.cli.command import root

# name -> (module, its app, what help says about it)
GROUPS: Final = {
    "signals": ("signals", "app", "What senders say."),
    "incidents": ("incidents", "app", "What is wrong, and since when."),
    "decisions": ("decisions", "app", "What was decided, and why."),
    "rules": ("rule_examples", "rules_app", "What is known is answered without a model."),
    "policies": ("publishing", "policies_app", "What may be done."),
    "playbooks": ("publishing", "playbooks_app", "What is done, step by step."),
    "templates": ("publishing", "templates_app", "What an agent is for, and what it may use."),
    "agents": ("agents", "app", "Agents that run or ran."),
    "models": ("models", "app", "Which model answers for which role."),
    "executions": ("executions", "app", "Playbooks that run or ran."),
    "effects": ("effects", "app", "What was done, once each."),
    "approvals": ("approvals", "app", "Actions that wait for a person."),
    "kill": ("kills", "app", "Stop, and let go again."),
    "audit": ("audit", "app", "The record, and its proof."),
    "tools": ("tools", "app", "What can be done, and doing it by hand."),
    "certs": ("mesh", "certs_app", "Certificates of one machine."),
}
ALONE: Final = {
    "up": ("mesh", "Run the mesh in the foreground until Ctrl-C."),
    "status": ("mesh", "Say how each service and store is, and what waits for whom."),
    "chat": ("chat", "Talk: ask, wish, and answer what is asked."),
    "logs": ("mesh", "Show the last lines a process wrote."),
    "check": ("check", "Validate all configuration against the IDL, offline."),
    "migrate": ("mesh", "Bring the database to this version's schema."),
    "version": ("mesh", "Say which version this is."),
    "demo": ("mesh", "Show the main job for real: an alert repaired, an approval, a drift, and the kill switch."),
}
HELP: Final = {name: text for name, (_, text) in ALONE.items()} | {name: text for name, (_, _, text) in GROUPS.items()}


class Groups(TyperGroup):
    """The commands by name; only the one that is used is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Stand-ins: names for help and for "did you mean", without an import.
        self.commands = {name: TyperCommand(name, help=text) for name, text in HELP.items()}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one command, from its module."""
        if cmd_name in GROUPS:
            module, name, _ = GROUPS[cmd_name]
            return get_command(getattr(importlib.import_module(f"services.cli.{module}"), name))
        if cmd_name in ALONE:
            module, _ = ALONE[cmd_name]
            group: Any = get_command(importlib.import_module(f"services.cli.{module}").app)
            return group.get_command(ctx, cmd_name)
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  typer's interface
        """Write the list of commands for help."""
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


app = typer.Typer(
    name="opsmesh",
    cls=Groups,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(root)


def main() -> None:
    """Run the command line."""
    app(prog_name="opsmesh")


if __name__ == "__main__":
    main()
