"""AWS for tests: moto's server, with groups of machines in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
from moto.server import ThreadedMotoServer

REGION: Final = "eu-west-1"
KEY_ID: Final = "AKIAIOSFODNN7EXAMPLE"
SECRET: Final = "wJalrXUtnFEMIexamplekey"
GROUP: Final = "web"


@contextmanager
def aws() -> Iterator[str]:
    """Run moto's server in a thread; gives its address."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def admin(url: str) -> Any:
    """Return a client of its own, for what tests set up and look at."""
    return boto3.client(
        "autoscaling",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )


def make_group(url: str, name: str = GROUP, *, desired: int = 2, least: int = 1, most: int = 20) -> None:
    """Make a group of machines anew."""
    client = admin(url)
    if not client.describe_launch_configurations()["LaunchConfigurations"]:
        client.create_launch_configuration(
            LaunchConfigurationName="small", ImageId="ami-12c6146b", InstanceType="t2.micro"
        )
    if client.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]:
        client.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
    client.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName="small",
        MinSize=least,
        MaxSize=most,
        DesiredCapacity=desired,
        AvailabilityZones=[f"{REGION}a"],
    )


def capacity(url: str, name: str = GROUP) -> int:
    """Return the wanted number of machines."""
    (group,) = admin(url).describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    return int(group["DesiredCapacity"])


def entry(url: str, folder: Path, target: str, group: str = GROUP) -> dict[str, Any]:
    """Return the entry of a group in the backends file, and write its secret beside it."""
    secret = folder / "aws.secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    account = {
        "region": REGION,
        "endpoint_url": url,
        "access_key_id": KEY_ID,
        "secret_access_key_file": "aws.secret",
    }
    return {"target_id": target, "group": group, "aws": account}
