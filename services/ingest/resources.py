"""From a sender's labels to OpenTelemetry resource attributes, and from these to keys of what could be acted on."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from services.ingest.signal import TargetKey

VALUE_MAX: Final = 1024
KEY_LENGTH_MAX: Final = 200
TARGETS_MAX: Final = 8
NAMESPACE: Final = "k8s.namespace.name"
CLUSTER: Final = "k8s.cluster.name"
ENVIRONMENT: Final = "deployment.environment.name"
SERVICE: Final = "service.name"
HOST: Final = "host.name"
CLOUD_ID: Final = "cloud.resource_id"
POD: Final = "k8s.pod.name"
# First match wins, so that the precise name goes before the vague one.
LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    SERVICE: ("service", "service_name"),
    "service.namespace": ("service_namespace",),
    "service.instance.id": ("service_instance_id",),
    ENVIRONMENT: (
        "env",
        "environment",
        "deployment.environment",
        "deployment_environment",
        "deployment_environment_name",
    ),
    NAMESPACE: ("namespace", "kubernetes_namespace", "k8s_namespace_name", "kube_namespace"),
    CLUSTER: ("cluster", "cluster_name", "k8s_cluster_name", "kube_cluster_name"),
    POD: ("pod", "pod_name", "kubernetes_pod_name", "k8s_pod_name"),
    "k8s.deployment.name": ("deployment", "k8s_deployment_name", "kube_deployment"),
    "k8s.statefulset.name": ("statefulset", "k8s_statefulset_name"),
    "k8s.daemonset.name": ("daemonset", "k8s_daemonset_name"),
    "k8s.container.name": ("container", "container_name", "k8s_container_name"),
    "k8s.node.name": ("node", "nodename", "k8s_node_name"),
    "cloud.region": ("region", "cloud_region", "aws_region"),
    "cloud.account.id": ("account_id", "cloud_account_id"),
    "cloud.availability_zone": ("availability_zone", "zone"),
    "cloud.provider": ("cloud_provider",),
    CLOUD_ID: ("cloud_resource_id", "resource_arn"),
    "host.id": ("host_id",),
    HOST: ("host", "hostname", "host_name", "instance"),
}
WORKLOADS: Final = ("deployment", "statefulset", "daemonset")
KUBERNETES: Final = (CLUSTER, POD, "k8s.container.name", "k8s.node.name", *(f"k8s.{kind}.name" for kind in WORKLOADS))
# A pod's name tells its owner: `web-5d4f8c7b9-x2v4q` is a deployment's, `db-0` a stateful set's.
DEPLOYMENT_POD: Final = re.compile(r"(?P<name>[a-z0-9.-]+)-[a-z0-9]{8,10}-[a-z0-9]{5}")
STATEFUL_POD: Final = re.compile(r"(?P<name>[a-z0-9.-]+)-[0-9]{1,4}")


# Label to attribute and rank: a signal has few labels, so these are looked up and not the names.
RANKED: Final = {
    name: (attribute, rank)
    for attribute, names in LABELS.items()
    for rank, name in reversed(list(enumerate((attribute, *names))))
}


def resource_of(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the resource attributes that labels tell; attributes under their own OpenTelemetry name go first."""
    ranks: dict[str, int] = {}
    found: dict[str, str] = {}
    for name, value in labels.items():
        if name not in RANKED:
            continue
        attribute, rank = RANKED[name]
        if value and rank < ranks.get(attribute, rank + 1):
            ranks[attribute] = rank
            found[attribute] = value[:VALUE_MAX]
    if HOST in found and not (host := without_port(found[HOST])):
        del found[HOST]
    elif HOST in found:
        found[HOST] = host
    if NAMESPACE in found and not any(attribute in found for attribute in KUBERNETES):
        found.setdefault("service.namespace", found.pop(NAMESPACE))
    return found


def without_port(instance: str) -> str:
    """Return the host of `host:port`, `[v6]:port` or a bare host."""
    if instance.startswith("["):
        return instance[1:].partition("]")[0]
    host, colon, port = instance.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else instance


def target_keys(resource: Mapping[str, str]) -> tuple[TargetKey, ...]:
    """Return the keys of what a signal is about, most specific first; never from free text."""
    return tuple(key for key in _keys(resource) if len(key.key) <= KEY_LENGTH_MAX)[:TARGETS_MAX]


def targets_of_all(resources: Iterable[Mapping[str, str]]) -> tuple[TargetKey, ...]:
    """Return the keys of everything that a signal is about, when that is more than one thing: each once."""
    found = {key.key: key for resource in resources for key in target_keys(resource)}
    return tuple(found.values())[:TARGETS_MAX]


def _keys(resource: Mapping[str, str]) -> Iterator[TargetKey]:
    yield from _workload(resource)
    if service := resource.get(SERVICE):
        environment = resource.get(ENVIRONMENT, "").lower()
        yield TargetKey("svc", f"svc:{environment}/{service}" if environment else f"svc:{service}", not environment)
    if cloud := resource.get(CLOUD_ID):
        yield TargetKey("cloud", f"cloud:{cloud.lower()}")
    if host := resource.get(HOST):
        yield TargetKey("host", f"host:{host}")


def _workload(resource: Mapping[str, str]) -> Iterator[TargetKey]:
    """Yield the Kubernetes workload; a guess from a pod's name is partial: not enough for a lock."""
    namespace = resource.get(NAMESPACE)
    if not namespace:
        return
    cluster = resource.get(CLUSTER, "")
    place = f"k8s:{cluster}/{namespace}" if cluster else f"k8s:{namespace}"
    named = next((kind for kind in WORKLOADS if resource.get(f"k8s.{kind}.name")), None)
    if named:
        yield TargetKey("k8s", f"{place}/{named}/{resource[f'k8s.{named}.name']}", not cluster)
        return
    pod = resource.get(POD, "")
    if match := DEPLOYMENT_POD.fullmatch(pod):
        yield TargetKey("k8s", f"{place}/deployment/{match['name']}", partial=True)
    elif match := STATEFUL_POD.fullmatch(pod):
        yield TargetKey("k8s", f"{place}/statefulset/{match['name']}", partial=True)
    elif pod:
        yield TargetKey("k8s", f"{place}/pod/{pod}", not cluster)
