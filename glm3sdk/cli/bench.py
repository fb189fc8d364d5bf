"""`glm3 bench`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.completing import complete_model, complete_runtime
from glm3sdk.cli.loading import RUNTIME_HELP

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.services.benchmark import BenchmarkReport

_GB = 10**9


@click.command()
@click.argument("model", default="tiny", shell_complete=complete_model)
@click.option("--runtime", metavar="NAME", shell_complete=complete_runtime, help=RUNTIME_HELP)
@click.option("--dtype", metavar="DTYPE", help="What to hold weights in.")
@click.option("--prompt", default=128, show_default=True, metavar="TOKENS", help="Prompt tokens.")
@click.option(
    "--new-tokens", default=16, show_default=True, metavar="TOKENS", help="Decoded tokens."
)
@click.option(
    "--batch",
    type=click.IntRange(max=4096),
    default=8,
    show_default=True,
    metavar="N",
    help="Sequences together.",
)
@click.option(
    "--repeats",
    type=click.IntRange(max=1000),
    default=5,
    show_default=True,
    metavar="N",
    help="Medians are of these.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    model: str,
    *,
    runtime: str | None,
    dtype: str | None,
    prompt: int,
    new_tokens: int,
    batch: int,
    repeats: int,
    as_json: bool,
) -> None:
    r"""Measure how fast MODEL is here: prefill, decode, a batch, memory.

    The figures are medians of interleaved repeats. A machine's speed swings from hour to hour:
    compare figures of one run, and what decoding takes of the memory's bandwidth.

    \b
    Examples:
      glm3 bench
      glm3 bench models/glm3-int4 --runtime openvino --prompt 512 --json
    """
    from glm3sdk.bootstrap.benchmark import run_benchmark
    from glm3sdk.services.benchmark import BenchmarkPlan

    plan = BenchmarkPlan(prompt=prompt, new_tokens=new_tokens, batch=batch, repeats=repeats)
    report, load_s = run_benchmark(model, plan, runtime=runtime, dtype=dtype)
    if as_json:
        click.echo(json.dumps({"model": model, "load_s": load_s, **report.to_json()}))
    else:
        _show(report, load_s)


def _show(report: BenchmarkReport, load_s: float) -> None:
    plan = report.plan
    click.echo(f"{report.runtime}, {report.dtype}: loaded in {load_s:.1f} s")
    rows = (
        (f"prefill of {plan.prompt} tokens", f"{report.prefill_tokens_per_s:.1f} tokens/s"),
        ("time to first token", f"{report.first_token_s:.3f} s"),
        ("decode", f"{report.decode_tokens_per_s:.1f} tokens/s"),
        (f"decode of {plan.batch} together", f"{report.batch_tokens_per_s:.1f} tokens/s"),
        ("verifying three guesses", f"{report.verify_steps:.2f} steps of decoding"),
        ("peak memory", f"{report.peak_rss / _GB:.2f} GB"),
        ("of it now without mapped files", f"{report.anonymous / _GB:.2f} GB"),
        (
            "weights read for a token",
            f"{report.token_bytes / _GB:.3f} GB, {report.bandwidth_share:.0%} of the "
            f"{report.memory_bytes_per_s / _GB:.1f} GB/s that memory gives",
        ),
    )
    for name, value in rows:
        click.echo(f"  {name:32}{value}")
