"""`glm3 rank-table generate|merge|convert|validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from glm3sdk.cli.failures import ReportingGroup

_out = click.option(
    "-o",
    "--output",
    "--out",
    "out",
    type=click.Path(path_type=Path),
    default=".",
    metavar="DIR",
    help="Directory of the new file.",
)


@click.group("rank-table", cls=ReportingGroup)
def rank_table() -> None:
    """Make, check and convert HCCL rank tables.

    A rank table tells which card of which server is which rank of a job.
    """


@rank_table.command()
@click.option(
    "--device_num",
    "--device-num",
    default="[0,8)",
    show_default=True,
    metavar="RANGE",
    help="Which cards, half-open.",
)
@click.option(
    "--visible_devices",
    "--visible-devices",
    metavar="LIST",
    help="What the cards are on the server, such as 4,5,6,7, where only some are visible.",
)
@click.option("--server_ip", "--server-ip", metavar="IP", help="This server.  [default: its own]")
@click.option(
    "--device_num_per_node",
    "--device-num-per-node",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Cards of a server.",
)
@click.option(
    "--hccn_conf",
    "--hccn-conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the cards' addresses are.  [default: ask hccn_tool, then /etc/hccn.conf]",
)
@_out
def generate(
    *,
    device_num: str,
    visible_devices: str | None,
    server_ip: str | None,
    device_num_per_node: int,
    hccn_conf: Path | None,
    out: Path,
) -> None:
    r"""Write the rank table of this server: hccl_8p_01234567_10.0.0.1.json.

    \b
    Example:
      glm3 rank-table generate --device_num "[0,4)" --server_ip 10.0.0.1
    """
    from glm3sdk.bootstrap import rank_tables

    file = rank_tables.generate(
        device_num=device_num,
        visible=visible_devices,
        server_ip=server_ip,
        device_num_per_node=device_num_per_node,
        hccn_conf=hccn_conf,
        out=out,
    )
    click.echo(file)


@rank_table.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_out
def merge(files: tuple[Path, ...], out: Path) -> None:
    r"""Merge the tables of several servers, in this order: hccl_2s_16p.json.

    \b
    Example:
      glm3 rank-table merge hccl_8p_01234567_10.0.0.1.json hccl_8p_01234567_10.0.0.2.json
    """
    from glm3sdk.bootstrap import rank_tables

    click.echo(rank_tables.merge(files, out=out))


@rank_table.command()
@click.argument("file", type=click.Path(path_type=Path))
def convert(file: Path) -> None:
    r"""Print FILE, of any format, as version 1.0.

    \b
    Example:
      glm3 rank-table convert /user/config > hccl.json
    """
    from glm3sdk.bootstrap.rank_tables import read_rank_table

    click.echo(json.dumps(read_rank_table(file).to_json(), indent=4))


@rank_table.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what it holds as JSON.")
def validate(file: Path, *, as_json: bool) -> None:
    r"""Check FILE: exit code 0, or 2 with the field that is wrong.

    \b
    Example:
      glm3 rank-table validate hccl.json --json
    """
    from glm3sdk.bootstrap.rank_tables import read_rank_table

    table = read_rank_table(file)
    if as_json:
        values = {
            "file": str(file),
            "version": table.version,
            "status": table.status,
            "servers": len(table.servers),
            "ranks": table.rank_size,
        }
        click.echo(json.dumps(values, ensure_ascii=False))
    else:
        servers = "server" if len(table.servers) == 1 else "servers"
        click.echo(
            f"{file}: version {table.version}, {len(table.servers)} {servers}, "
            f"{table.rank_size} ranks, {table.status}"
        )
