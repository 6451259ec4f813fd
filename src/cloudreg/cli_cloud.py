"""``cloudreg aws``: machines and buckets of Amazon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cloudreg.errors import InputError

aws_app = typer.Typer(help="Machines and buckets of Amazon's cloud.", no_args_is_help=True)

InstanceId = Annotated[str, typer.Argument(metavar="INSTANCE", help="Machine of EC2, such as i-0123456789abcdef0.")]
InstanceType = Annotated[
    str | None, typer.Option("--type", help="Type to start it as, such as r5.8xlarge; default: the one it has.")
]


@aws_app.command("run")
def aws_run(
    instance: InstanceId,
    words: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND…", help="A command of cloudreg with all that belongs to it.")
    ],
    key: Annotated[
        Path | None, typer.Option("--key", help="Private ssh key that the machine knows; default: your agent's.")
    ] = None,
    kind: InstanceType = None,
    user: Annotated[str, typer.Option("--user", help="User name on the machine.")] = "ubuntu",
    program: Annotated[str, typer.Option("--program", help="CloudReg there, as its shell finds it.")] = "cloudreg",
    new_host: Annotated[
        Literal["accept", "refuse"],
        typer.Option("--new-host", help="Whether a machine met for the first time is trusted, and then remembered."),
    ] = "accept",
) -> None:
    """Run a command on a machine that is started for it, and stopped whatever happens."""
    from cloudreg.cloud.remote import Machine, run_on_machine
    from cloudreg.execution.progress import enable

    enable()
    run_on_machine(Machine(instance, key, kind, user, new_host), [program, *words])


@aws_app.command("list")
def aws_list() -> None:
    """Show the machines of the region, and which of them run and cost."""
    from cloudreg.cloud.ec2 import list_instances

    for machine in list_instances():
        since = f" since {machine.since:%Y-%m-%d %H:%M} UTC" if machine.since and machine.state == "running" else ""
        words = (machine.instance_id, machine.instance_type, machine.state + since, machine.address, machine.name)
        print("  ".join(word for word in words if word))


@aws_app.command("start")
def aws_start(instance: InstanceId, kind: InstanceType = None) -> None:
    """Start a machine and print its address; it runs, and costs, until it is stopped."""
    from cloudreg.cloud.ec2 import start_instance
    from cloudreg.execution.progress import enable

    enable()
    print(start_instance(instance, kind))


@aws_app.command("stop")
def aws_stop(instance: InstanceId) -> None:
    """Stop a machine; its disk is kept."""
    from cloudreg.cloud.ec2 import stop_instance
    from cloudreg.execution.progress import enable

    enable()
    stop_instance(instance)


@aws_app.command("bucket")
def aws_bucket(
    name: Annotated[str, typer.Argument(help="Name, unique in the world.")],
    region: Annotated[str | None, typer.Option("--region", help="Where; default: AWS_REGION.")] = None,
) -> None:
    """Make a private bucket, ready for viewers in browsers: see share."""
    from cloudreg.cloud.buckets import make_bucket

    name = name.removeprefix("s3://").rstrip("/")
    print(f"s3://{name} in {make_bucket(name, region)}")


@aws_app.command("share")
def aws_share(
    bucket: Annotated[str, typer.Argument(help="Name of the bucket, which stays private itself.")],
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="Network that may look, such as 203.0.113.0/24; again for more.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody look who knows the address.")] = False,
) -> None:
    """Let browsers read a bucket through Amazon's CDN, and print the address that takes the place of s3://."""
    from cloudreg.cloud.share import share_bucket

    if bool(allow) == public:
        raise InputError("expected who may look, got none: give --allow NETWORK (as often as needed), or --public")
    print(share_bucket(bucket.removeprefix("s3://").rstrip("/"), allow or ()))
