"""Moto's server in the place of Amazon."""

import logging


class AwsServer:
    """EC2 (and S3) on a free port; its machines exist in its memory only."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.endpoint = "http://{}:{}".format(*self.server.get_host_and_port())
        self.settings = {
            "AWS_ENDPOINT_URL_EC2": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def for_user(self, monkeypatch):
        """Make it the user's EC2, and return a client."""
        import boto3

        for name, value in self.settings.items():
            monkeypatch.setenv(name, value)
        return boto3.client("ec2")

    def stop(self) -> None:
        self.server.stop()


def new_machine(ec2, kind: str = "t2.micro", *, stopped: bool = True) -> str:
    """Make a machine and return its id."""
    answer = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType=kind)
    identity = answer["Instances"][0]["InstanceId"]
    if stopped:
        ec2.stop_instances(InstanceIds=[identity])
    return identity


def machine(ec2, identity: str) -> dict:
    """Describe a machine."""
    return ec2.describe_instances(InstanceIds=[identity])["Reservations"][0]["Instances"][0]


def state_of(ec2, identity: str) -> str:
    """Return ``running``, ``stopped``…"""
    return machine(ec2, identity)["State"]["Name"]
