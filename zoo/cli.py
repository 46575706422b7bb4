"""The `zoo` command. Subcommands are imported when they are called, so that `zoo list` stays instant."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from zoo import front

COMMANDS = {
    "list": "zoo.commands.catalogue:list_models",
    "info": "zoo.commands.catalogue:info",
    "plan": "zoo.commands.plan:plan",
    "plugins": "zoo.commands.plugins:plugins",
    "doctor": "zoo.commands.plugins:doctor",
    "sample": "zoo.commands.sample:sample",
    "evaluate": "zoo.commands.evaluate:evaluate",
    "sweep": "zoo.commands.sweep:sweep",
    "probe": "zoo.commands.probe:probe",
    "finetune": "zoo.commands.finetune:finetune",
    "embed": "zoo.commands.embed:embed",
    "import": "zoo.commands.import_:import_public",
    "export": "zoo.commands.export:export",
    "quickstart": "zoo.commands.quickstart:quickstart",
}


class Lazy(click.Group):
    """A group that imports a subcommand when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="image-zoo", prog_name="zoo")
def cli() -> None:
    """Image Zoo: classic image generation systems as interchangeable, trainable parts.

    Train with `python scripts/train.py --model NAME`; then sample and evaluate the run folder here. Add --debug to
    any command to see the traceback behind an error.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return front.run(cli, "zoo", argv)


if __name__ == "__main__":
    sys.exit(main())
