"""``cloudreg aws``, as it is typed."""

import os
import sys

import pytest

from aws_server import machine, new_machine, state_of
from cloudreg import cli
from cloudreg.execution import progress


@pytest.fixture
def cloudreg(monkeypatch, capsys):
    """Run a command line in this process; return exit code, standard output and standard error."""
    monkeypatch.setattr(progress, "_console", None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cloudreg", *(str(word) for word in words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def there(ec2, ssh_server, home):
    """A machine of EC2 behind whose address the ssh server answers, with CloudReg on it."""
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").write_text(f"Host *.*.*.*\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n")
    program = home / "bin" / "cloudreg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cloudreg "$@"\n')
    (home / "bin" / "sudo").write_text("#!/bin/sh\n")  # nobody may shut this computer down
    for file in program.parent.iterdir():
        file.chmod(0o755)
    path = os.pathsep.join(word for word in sys.path if word)
    ssh_server.env = dict(os.environ, PATH=f"{program.parent}:{os.environ['PATH']}", PYTHONPATH=path)
    return new_machine(ec2, "t2.micro")


def test_the_same_command_runs_on_aws(cloudreg, there, ec2, keys, home):
    import numpy as np
    import tifffile

    from cloudreg.io import open_volume

    array = np.random.default_rng(0).integers(0, 999, (5, 20, 30)).astype(np.uint16)
    tifffile.imwrite(home / "my brain.tif", array, photometric="minisblack")
    convert = ["convert", "my brain.tif", "out.ome.zarr", "--voxel-size", "2", "1", "1"]
    code, _, err = cloudreg("aws", "run", there, "--key", keys["ed25519"], "--type", "r5.large", "--", *convert)
    assert code == 0, err
    np.testing.assert_array_equal(open_volume(home / "out.ome.zarr").read(), array)
    assert state_of(ec2, there) == "stopped" and machine(ec2, there)["InstanceType"] == "r5.large"
    assert f"starting instance {there} as r5.large" in err and f"instance {there} is stopped" in err

    code, out, err = cloudreg("aws", "run", there, "--key", keys["ed25519"], "--", "info", "out.ome.zarr")
    assert code == 0 and "5 x 20 x 30" in out, (out, err)


def test_bad_input_there_is_bad_input_here(cloudreg, there, ec2, keys):
    code, _, err = cloudreg("aws", "run", there, "--key", keys["rsa"], "--", "info", "/nowhere")
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines[0].startswith("error: expected a TIFF file or folder")
    assert "ended with exit status 2: error: expected a TIFF file" in lines[1] and len(lines) == 2
    assert state_of(ec2, there) == "stopped"


def test_machines_are_listed_started_and_stopped(cloudreg, ec2):
    identity = new_machine(ec2)
    ec2.create_tags(Resources=[identity], Tags=[{"Key": "Name", "Value": "the lab's"}])
    code, out, _ = cloudreg("aws", "start", identity, "--type", "r5.large")
    assert code == 0 and out.strip() == machine(ec2, identity)["PublicIpAddress"]
    line = next(line for line in cloudreg("aws", "list")[1].splitlines() if identity in line)
    assert line.startswith(f"{identity}  r5.large  running since 20") and line.endswith(f"{out.strip()}  the lab's")
    assert cloudreg("aws", "stop", identity)[0] == 0
    assert state_of(ec2, identity) == "stopped"
    gone = new_machine(ec2)
    ec2.terminate_instances(InstanceIds=[gone])
    out = cloudreg("aws", "list")[1]
    assert f"{identity}  r5.large  stopped" in out and gone not in out


def test_an_unknown_machine_is_one_line(cloudreg, ec2):
    code, _, err = cloudreg("aws", "start", "i-0123456789abcdef0")
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: could not find instance i-0123456789abcdef0")


def test_a_bucket_is_made(cloudreg, ec2, aws_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", aws_server.endpoint)
    assert cloudreg("aws", "bucket", "typed-bucket", "--region", "eu-west-1")[:2] == (
        0,
        "s3://typed-bucket in eu-west-1\n",
    )
