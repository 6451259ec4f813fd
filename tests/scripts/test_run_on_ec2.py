"""The whole way: moto's EC2, a real ssh server in the place of the machine, and the command truly run there."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from aws_server import AwsServer, machine, new_machine, state_of
from brains import SHAPE, VOXEL_UM, brain
from cloudreg.errors import CommandFailedError
from cloudreg.execution import progress
from cloudreg.io import open_volume, write_volume
from cloudreg.io.objects import list_files
from cloudreg.space import Grid
from object_store import KEY, SECRET
from ssh_server import SshServer, make_keys


@pytest.fixture(scope="module")
def aws_server():
    server = AwsServer()
    yield server
    server.stop()


@pytest.fixture
def machines(aws_server, tmp_path, monkeypatch):
    """EC2, and an ssh server that answers for whatever address it gives to a machine."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "SSH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # A command line switches progress on for good; the tests that follow must find it off.
    monkeypatch.setattr(progress, "_console", None)
    ec2 = aws_server.for_user(monkeypatch)
    keys = make_keys(tmp_path / "keys")
    server = SshServer(keys["rsa"].with_name("allowed"))
    server.cwd = str(tmp_path)
    # Nobody may shut this computer down: the machine's `sudo` notes what it is asked.
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text(f'#!/bin/sh\necho asked "$@" >> {tmp_path}/asked\n')
    sudo.chmod(0o755)
    server.env = dict(os.environ, PATH=f"{sudo.parent}:{os.environ['PATH']}")
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "config").write_text(f"Host *.*.*.*\n  HostName 127.0.0.1\n  Port {server.port}\n")
    server.ec2, server.keys, server.folder = ec2, keys, tmp_path
    server.test_folder = Path(__file__).parent
    yield server
    server.stop()


@pytest.fixture
def python(tmp_path):
    """A Python that writes down the arguments of the module that it is to run, and ends as told."""
    program = tmp_path / "python with a space"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\nfrom pathlib import Path\n"
        f"Path({str(tmp_path / 'words.json')!r}).write_text(json.dumps(sys.argv[1:]))\n"
        "print('running', flush=True)\n"
        f"time.sleep(float(os.environ.get('WAIT', 0)))\nsys.exit(int(os.environ.get('END', 0)))\n"
    )
    program.chmod(0o755)
    return program


def words(folder):
    return json.loads((folder / "words.json").read_text())


def colm_call(machines, identity):
    return [str(machines.keys["ed25519"]), identity, "s3://raw/my brain; rm -rf $HOME", "s3://out/'brain'", 3, 1]


def test_the_pipeline_runs_there_with_the_arguments_as_they_are(legacy, machines, python, capsys):
    identity = new_machine(machines.ec2)
    legacy("run_colm_pipeline_ec2").run_colm_pipeline(*colm_call(machines, identity), python=str(python))
    expected = ["-m", "cloudreg.scripts.colm_pipeline", "s3://raw/my brain; rm -rf $HOME", "s3://out/'brain'", "3", "1"]
    assert words(machines.folder) == expected
    assert capsys.readouterr().out == "running\n"
    found = machine(machines.ec2, identity)
    assert (found["State"]["Name"], found["InstanceType"]) == ("stopped", "r5d.24xlarge")
    known = (machines.folder / "home" / ".ssh" / "known_hosts").read_text()
    assert known.startswith(f"{identity} ssh-ed25519 ") and known.count("\n") == 1


def test_an_intermediate_place_and_a_type_are_handed_on(legacy, machines, python):
    identity = new_machine(machines.ec2)
    run = legacy("run_colm_pipeline_ec2").run_colm_pipeline
    run(*colm_call(machines, identity), "s3://log", "r5d.large", python=str(python))
    assert words(machines.folder)[-2:] == ["--log_s3_path", "s3://log"]
    assert machine(machines.ec2, identity)["InstanceType"] == "r5d.large"


def test_its_failure_there_is_ours_and_the_machine_is_stopped(legacy, machines, python):
    identity = new_machine(machines.ec2)
    machines.env["END"] = "3"
    with pytest.raises(CommandFailedError) as caught:
        legacy("run_colm_pipeline_ec2").run_colm_pipeline(*colm_call(machines, identity), python=str(python))
    assert caught.value.exit_code == 3
    assert state_of(machines.ec2, identity) == "stopped"


def test_a_cut_connection_stops_the_machine_from_both_ends(legacy, machines, python):
    identity = new_machine(machines.ec2)
    machines.env["WAIT"] = "3"
    command = [sys.executable, "-m", "cloudreg.scripts.run_colm_pipeline_ec2", "-instance_id", identity]
    command += ["-ssh_key_path", str(machines.keys["rsa"]), "-num_channels", "3", "-autofluorescence_channel", "0"]
    command += ["-input_s3_path", "s3://raw", "-output_s3_path", "s3://out", "--python", str(python)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "running\n"
    machines.drop()
    _, err = running.communicate()
    assert running.returncode == 1
    assert err.splitlines()[-1].startswith("error: the connection to ") and "Traceback" not in err
    assert state_of(machines.ec2, identity) == "stopped"
    until = time.monotonic() + 10
    asked = machines.folder / "asked"
    while not (asked.exists() and asked.read_text() == "asked -n shutdown -P now\n"):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_line_stops_the_machine(machines, python, number):
    identity = new_machine(machines.ec2)
    machines.env["WAIT"] = "60"
    command = [sys.executable, "-m", "cloudreg.scripts.run_colm_pipeline_ec2", "-instance_id", identity]
    command += ["-ssh_key_path", str(machines.keys["rsa"]), "-num_channels", "3", "-autofluorescence_channel", "0"]
    command += ["-input_s3_path", "s3://raw", "-output_s3_path", "s3://out", "--python", str(python)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "running\n"
    assert machine(machines.ec2, identity)["InstanceType"] == "r5d.16xlarge"
    running.send_signal(number)
    running.communicate()
    assert running.returncode != 0
    assert state_of(machines.ec2, identity) == "stopped"


REGISTRATION = [
    "--atlas_s3_path",
    "s3://b/atlas",
    "--parcellation_s3_path",
    "s3://b/regions",
    *("-input_s3_path", "s3://b/in", "-output_s3_path", "s3://b/out", "-log_s3_path", "s3://b/log"),
    *("-orientation", "LPS", "--xy", "90", "--yz", "-5.5", "--x", "-100", "--z=-1e-5", "--fixed_scale", "1.2"),
    *("--missing_data_correction", "False", "--grid_correction", "True", "--registration_resolution", "50"),
]


def test_a_registration_runs_there(legacy, machines, python, capsys):
    identity = new_machine(machines.ec2)
    key = str(machines.keys["ecdsa"])
    code = legacy("run_registration_ec2").main(
        ["-ssh_key_path", key, "-instance_id", identity, "--python", str(python), *REGISTRATION]
    )
    assert code == 0 and machine(machines.ec2, identity)["InstanceType"] == "r5.12xlarge"
    got = words(machines.folder)
    assert got[:2] == ["-m", "cloudreg.scripts.registration"]

    def after(name, count=1):
        return got[got.index(name) + 1 :][:count]

    assert after("-input_s3_path") == ["s3://b/in"] and after("--output_s3_path") == ["s3://b/out"]
    assert after("--fixed_scale", 2) == ["1.2", "--translation"]
    assert [float(v) for v in after("--translation", 3)] == [-100, 0, -1e-5]
    assert [float(v) for v in after("--rotation", 3)] == [-5.5, 0, 90]
    assert after("--missing_data_correction") == ["False"] and after("--grid_correction") == ["True"]
    assert after("--bias_correction") == ["True"] and after("--regularization") == ["5000"]
    assert after("--iterations") == ["3000"] and after("--registration_resolution") == ["50"]
    assert after("--atlas_orientation") == ["PIR"]
    assert not any(word.startswith("-") and "e" in word and word[1].isdigit() for word in got)
    # The module's own command line must take them: its names are the documented ones.
    documented = json.loads((machines.test_folder / "legacy_cli.json").read_text())["modules"]["registration"]
    assert {word for word in got[2:] if word[:1] == "-" and not word[1].isdigit()} <= {a["name"] for a in documented}


def test_without_an_atlas_the_machine_gets_it_from_brainglobe(legacy, machines, python):
    identity = new_machine(machines.ec2)
    words_without = ["-ssh_key_path", str(machines.keys["rsa"]), "-instance_id", identity, "--python", str(python)]
    assert legacy("run_registration_ec2").main([*words_without, *REGISTRATION[4:]]) == 0
    got = words(machines.folder)
    assert "--atlas_s3_path" not in got and "--parcellation_s3_path" not in got
    assert got[got.index("--atlas_orientation") + 1] == "PIR"


def test_a_machine_is_started_and_commands_are_run_on_it_by_their_helpers(legacy, machines, capfd):
    util, identity = legacy("util"), new_machine(machines.ec2)
    address = util.start_ec2_instance(identity, "r5.8xlarge")
    found = machine(machines.ec2, identity)
    assert (found["State"]["Name"], found["InstanceType"]) == ("running", "r5.8xlarge")
    assert address == found["PublicIpAddress"]
    key = str(machines.keys["ed25519"])
    # What it wrote to its errors is returned; all of it is shown.
    assert util.run_command_on_server("echo done; echo careful >&2", key, address) == "careful\n"
    assert util.run_command_on_server("true", key, address) == ""
    with pytest.raises(CommandFailedError, match="exit status 4"):
        util.run_command_on_server("exit 4", key, address)


def test_a_wrong_call_starts_nothing(legacy, machines, capsys):
    identity = new_machine(machines.ec2)
    code = legacy("run_registration_ec2").main(
        ["-ssh_key_path", "/nowhere", "-instance_id", identity, *REGISTRATION],
    )
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: expected a private ssh key at /nowhere, got no file: check the path"
    )
    assert machine(machines.ec2, identity)["InstanceType"] == "t2.micro"


@pytest.fixture
def with_cloudreg(machines, s3_server, monkeypatch):
    """CloudReg is on the machine, and the role of both is that of the writer of a real S3 server."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
        machines.env[name] = value
    # boto3 keeps the first user that it meets.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    machines.env["PYTHONPATH"] = os.pathsep.join(word for word in sys.path if word)
    return machines


def test_a_real_registration_runs_there_from_bucket_to_bucket(legacy, with_cloudreg, capsys):
    grid = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
    template = brain()
    z, y, x = np.indices(SHAPE)
    labels = np.where(template > 0.3, 1 + (z > 22) + 2 * (y > 18) + 4 * (x > 20), 0).astype(np.uint32) * 70001
    write_volume("precomputed://s3://private/ec2/average", (1000 * template).astype(np.uint16), grid)
    write_volume("precomputed://s3://private/ec2/annotation", labels.astype(np.uint32), grid, kind="labels")
    write_volume("precomputed://s3://private/ec2/brain", (30000 - 9000 * template).astype(np.uint16), grid)
    identity = new_machine(with_cloudreg.ec2)
    legacy("run_registration_ec2").run_registration(
        str(with_cloudreg.keys["ed25519"]), identity, "r5.8xlarge", "s3://private/ec2/brain",
        "s3://private/ec2/average", "s3://private/ec2/annotation", "PIR", "s3://private/ec2/out", "s3://private/ec2/log",
        [0, 0, 0], [0, 0, 0], "PIR", 1.0, True, False, False, 5000.0, 3000, 400, python=sys.executable,
    )  # fmt: skip
    found = open_volume("precomputed://s3://private/ec2/out")
    assert found.grid == grid and (found.read() == labels)[labels > 0].mean() > 0.9
    assert state_of(with_cloudreg.ec2, identity) == "stopped"


@pytest.mark.parametrize(("tiles", "channels"), [((1, 2), 1), pytest.param((2, 3), 2, marks=pytest.mark.slow)])
def test_a_real_colm_run_goes_there_from_tiles_in_a_bucket_to_volumes_in_a_bucket(
    legacy, put, specimen, with_cloudreg, tmp_path, capsys, tiles, channels
):
    home = f"s3://private/ec2/{channels}"
    y, x = np.meshgrid(*(np.linspace(-1, 1, 96),) * 2, indexing="ij")
    flat = 1.1 - 0.2 * (y**2 + x**2)
    colm = specimen(tmp_path / "raw", shading=flat, background=110, tiles=tiles, channels=channels)
    put(colm.path, f"{home}/tiles")
    # No server of states answers there: the link holds the state itself.
    with_cloudreg.env["https_proxy"] = "http://127.0.0.1:9"
    identity = new_machine(with_cloudreg.ec2)
    legacy("run_colm_pipeline_ec2").run_colm_pipeline(
        str(with_cloudreg.keys["ed25519"]), identity, f"{home}/tiles", f"{home}/volumes", channels, 0, f"{home}/log",
        python=sys.executable,
    )  # fmt: skip
    found = machine(with_cloudreg.ec2, identity)
    assert (found["State"]["Name"], found["InstanceType"]) == ("stopped", "r5d.24xlarge")
    for channel in range(channels):
        volume = open_volume(f"precomputed://{home}/volumes/{channel}")
        assert volume.grid.voxel_size_um == colm.voxel and volume.dtype == np.uint16
        # What was there is there again: not the seams, the shading or the shifts of the tiles.
        inner = (slice(6, 18), slice(40, -40), slice(40, -40))
        seen, truth = volume.read()[inner].ravel(), colm.specimen(volume.grid.shape)[inner].ravel()
        tissue = truth > 600
        assert np.corrcoef(np.log(seen[tissue] + 1.0), np.log(truth[tissue]))[0, 1] > 0.97
    shading = {f"shading/channel_{channel:02d}/flat.tif" for channel in range(channels)}
    assert {"xml_merging.xml", *shading} <= set(list_files(f"{home}/log"))
    (link,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("https://")]
    layers = json.loads(urllib.parse.unquote(link.partition("#!")[2]))["layers"]
    shown = [layer["source"]["url"].partition("/private/")[2] for layer in layers]
    assert shown == [f"ec2/{channels}/volumes/{channel}" for channel in range(channels)]


def test_bad_input_there_is_one_line_and_exit_code_two_here(legacy, with_cloudreg, capsys):
    """The pipeline's own command line takes the words; what is wrong is the address."""
    identity = new_machine(with_cloudreg.ec2)
    command = ["-ssh_key_path", str(with_cloudreg.keys["rsa"]), "-instance_id", identity, "--python", sys.executable]
    command += ["-input_s3_path", "s3://no-such-bucket/raw", "-output_s3_path", "s3://private/ec2/colm"]
    command += ["-num_channels", "1", "-autofluorescence_channel", "0"]
    code = legacy("run_colm_pipeline_ec2").main(command)
    err = capsys.readouterr().err
    assert code == 2 and "usage:" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and "no-such-bucket" in lines[0] and "ended with exit status 2" in lines[1], err
    assert state_of(with_cloudreg.ec2, identity) == "stopped"
