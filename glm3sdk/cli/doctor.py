"""`glm3 doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.completing import complete_config, complete_model, complete_runtime

if TYPE_CHECKING:  # `glm3 --help` is to be quick
    from glm3sdk.services.doctor import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="What to try.",
)
@click.option(
    "--runtime",
    metavar="NAME",
    shell_complete=complete_runtime,
    help="What runs it; by default what the model was converted for, else mindspore-cpu.",
)
@click.option(
    "--config",
    metavar="CONFIG",
    shell_complete=complete_config,
    help="A run configuration to check the lengths of.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=180.0,
    show_default=True,
    metavar="S",
    help="Seconds for each check.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    model: str,
    runtime: str | None,
    config: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    r"""Check this installation: versions, device, rank table, cache, plugins, one tiny decode.

    Nothing is fetched. Exit code 1 where a check fails; each failure comes with what to do.

    \b
    Examples:
      glm3 doctor
      glm3 doctor --model /models/chatglm3-6b --config run.yaml --json
    """
    from glm3sdk.services.doctor import Status, failed

    show = (lambda _: None) if as_json else _show
    try:
        from glm3sdk.bootstrap.doctor import run_doctor
    except Exception as exc:  # a library that we cannot do without does not load
        remedy = "pip install --force-reinstall glm3sdk"
        checks: tuple[Check, ...] = (failed("glm3sdk", f"{type(exc).__name__}: {exc}", remedy),)
        show(checks[0])
    else:
        checks = run_doctor(
            model=model, runtime=runtime, config=config, timeout_s=timeout_s, on_check=show
        ).checks
    healthy = all(check.status is not Status.FAIL for check in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [_json(each) for each in checks]}))
    if not healthy:
        ctx.exit(1)


def _show(check: Check) -> None:
    status = click.style(f"{check.status:7}", fg=_COLOURS.get(check.status))
    click.echo(f"{status}  {check.name}: {check.detail}")
    if check.remedy:
        click.echo(f"{'':9}{check.remedy}")


def _json(check: Check) -> dict[str, str]:
    return {
        "name": check.name,
        "status": str(check.status),
        "detail": check.detail,
        "remedy": check.remedy,
    }
