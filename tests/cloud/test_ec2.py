"""A machine of moto's EC2: started as the wanted type, and stopped whatever happens."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from aws_server import machine, new_machine, state_of
from cloudreg.cloud.ec2 import running_instance, start_instance, stop_instance
from cloudreg.errors import CloudRegError, CloudServiceError, InputError, StoreUnreachableError


def test_a_stopped_machine_is_started_as_the_wanted_type(ec2):
    identity = new_machine(ec2, "t2.micro")
    address = start_instance(identity, "r5.8xlarge")
    found = machine(ec2, identity)
    assert found["State"]["Name"] == "running" and found["InstanceType"] == "r5.8xlarge"
    assert address == found["PublicIpAddress"]


def test_without_a_type_it_keeps_its_own(ec2):
    identity = new_machine(ec2, "t2.micro")
    start_instance(identity)
    assert machine(ec2, identity)["InstanceType"] == "t2.micro"


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_either_name_of_the_region_counts(ec2, monkeypatch, name):
    identity = new_machine(ec2)
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(name, "us-east-1")
    assert start_instance(identity) == machine(ec2, identity)["PublicIpAddress"]


def test_a_machine_that_runs_so_already_is_taken_as_it_is(ec2):
    identity = new_machine(ec2, "t2.micro", stopped=False)
    assert start_instance(identity, "t2.micro") == machine(ec2, identity)["PublicIpAddress"]


def test_the_type_of_a_running_machine_is_not_changed(ec2):
    identity = new_machine(ec2, "t2.micro", stopped=False)
    with pytest.raises(InputError, match=r"runs as t2.micro, not as r5.large: stop it first"):
        start_instance(identity, "r5.large")
    assert machine(ec2, identity)["InstanceType"] == "t2.micro"


def test_the_machine_runs_for_as_long_as_the_block(ec2):
    identity = new_machine(ec2)
    with running_instance(identity, "r5.large") as address:
        assert state_of(ec2, identity) == "running"
        assert address == machine(ec2, identity)["PublicIpAddress"]
    assert state_of(ec2, identity) == "stopped"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_machine_is_stopped_when_the_block_fails(ec2, error):
    identity = new_machine(ec2)
    with pytest.raises(error), running_instance(identity):
        raise error
    assert state_of(ec2, identity) == "stopped"


def test_the_machine_is_stopped_when_its_start_fails_half_way(ec2, monkeypatch):
    """It runs, but has no address in a network without any."""
    network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": False})
    answer = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, SubnetId=subnet)
    identity = answer["Instances"][0]["InstanceId"]
    ec2.stop_instances(InstanceIds=[identity])
    with running_instance(identity) as address:
        assert address.startswith("10.0.0.")  # reached through a private network, then
    assert state_of(ec2, identity) == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_machine_is_stopped_when_we_are_interrupted(ec2, number, tmp_path):
    identity = new_machine(ec2)
    script = f"""
        import signal, time
        from pathlib import Path
        from cloudreg.cloud.ec2 import running_instance
        signal.signal({number}, signal.SIG_DFL if {number} != signal.SIGINT else signal.default_int_handler)
        with running_instance({identity!r}):
            Path({str(tmp_path / "in")!r}).touch()
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.DEVNULL) as running:
        while not (tmp_path / "in").exists():
            assert running.poll() is None
            time.sleep(0.02)
        assert state_of(ec2, identity) == "running"
        os.kill(running.pid, number)
    assert running.returncode != 0
    assert state_of(ec2, identity) == "stopped"


def test_under_nohup_the_end_of_the_terminal_is_nothing(ec2, monkeypatch):
    identity = new_machine(ec2)
    monkeypatch.setattr(signal, "SIGHUP", signal.SIGUSR1)  # pytest's own SIGHUP is left alone
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with running_instance(identity):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert state_of(ec2, identity) == "running"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_do_afterwards_what_they_did_before(ec2):
    identity = new_machine(ec2)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with running_instance(identity):
        pass
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_machine_at_which_somebody_works_is_left_alone(ec2):
    identity = new_machine(ec2, stopped=False)
    with pytest.raises(InputError, match="is running already, and somebody may be at work"), running_instance(identity):
        pytest.fail("the block must not run")
    assert state_of(ec2, identity) == "running"


def test_a_terminated_machine_is_named_as_such(ec2):
    identity = new_machine(ec2)
    ec2.terminate_instances(InstanceIds=[identity])
    with pytest.raises(InputError, match="was terminated"):
        start_instance(identity)


def test_a_machine_that_can_not_be_stopped_is_cried_out(ec2, monkeypatch):
    identity = new_machine(ec2)
    message = rf"{identity} MAY STILL RUN AND COST MONEY.*--instance-ids {identity}"
    with pytest.raises(CloudServiceError, match=message), running_instance(identity):
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert state_of(ec2, identity) == "running"


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({}, InputError, "could not find instance i-0123456789abcdef0 in region us-east-1: .*does not exist"),
        ({"AWS_REGION": None, "AWS_DEFAULT_REGION": None}, InputError, "no region is set: set AWS_REGION"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, InputError, "no AWS credentials were found"),
        ({"AWS_PROFILE": "nobody"}, InputError, r"profile \(nobody\) could not be found"),
        ({"AWS_ENDPOINT_URL_EC2": "http://127.0.0.1:9"}, StoreUnreachableError, "no answer from AWS"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ec2, monkeypatch, settings, kind, message):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for name, value in settings.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    for call in (start_instance, stop_instance):
        with pytest.raises(kind if call is start_instance else CloudRegError) as caught:
            call("i-0123456789abcdef0")
        assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=message):
        start_instance("i-0123456789abcdef0")
