"""The `cad` command: the pipeline in the order of the data flow."""

import sys

import typer

from cad.cli import (
    data,
    demo,
    doctor,
    object,
    plan,
    plugins,
    prior,
    report,
    repro,
    run,
    single,
    status,
    toyworld,
    train,
    weights,
)
from cad.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    help="CAD, reproduced (unofficial): photorealistic 3D generation via adversarial distillation.",
)
app.command("input")(single.prepare)
app.add_typer(prior.app, name="prior")
app.add_typer(train.app, name="train")
app.command("orbit")(single.render)
app.command("evaluate")(single.score)
app.add_typer(report.app, name="report")
app.add_typer(object.app, name="object")
app.add_typer(data.app, name="data")
app.command("run")(run.run)
app.command("repro")(repro.repro)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("plugins")(plugins.plugins)
app.add_typer(weights.app, name="weights")
app.add_typer(demo.app, name="demo")
app.add_typer(toyworld.app, name="toyworld")


def main() -> None:
    """Run the command line: a user's fault is one line on stderr and code 2, an interrupt 130, a bug a traceback."""
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
