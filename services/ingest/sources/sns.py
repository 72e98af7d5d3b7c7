"""What Amazon's SNS delivers: alarms of CloudWatch, in its envelope or raw; and confirmations, which open nothing.

An alarm comes in one of four shapes: as text in a notification, as that text alone (raw delivery), as an event of
EventBridge, or as CloudWatch hands it to a function. A confirmation's URL and token are no part of a signal: whoever
has them can subscribe this door to a topic.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    Kind,
    ParsedSignal,
    Status,
    Unreadable,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import (
    each,
    firsts,
    items_of,
    key_of,
    labels_of,
    line_of,
    need_object,
    object_of,
    text_in,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of

CONFIRMATIONS: Final = {
    "SubscriptionConfirmation": "the topic is to be sent to this address: confirm it yourself if the topic is yours",
    "UnsubscribeConfirmation": "the subscription of this address was ended: alarms of the topic do not come any more",
}
STATES: Final = {"ALARM": Status.FIRING, "OK": Status.RESOLVED, "INSUFFICIENT_DATA": Status.NO_DATA}
ARN: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):[a-z0-9-]+:(?P<region>[a-z0-9-]*):(?P<account>[^:]*):.+", re.DOTALL
)
# Dimensions that name what could be acted on, for resources that belong to no cluster of Kubernetes.
DIMENSIONS: Final[Mapping[str, str]] = {
    "InstanceId": "host_id",
    "ServiceName": "service",
    "AvailabilityZone": "availability_zone",
}
# Of Container Insights, which measures what runs in Kubernetes: of clusters and nodes it names no namespace.
KUBERNETES: Final[Mapping[str, str]] = {
    "ClusterName": "cluster",
    "Namespace": "namespace",
    "PodName": "pod",
    "NodeName": "node",
    "Service": "service",
    "InstanceId": "host_id",
}
INSIGHTS: Final = "ContainerInsights"
# Of EC2: others number what they call instances.
INSTANCE: Final = re.compile(r"i-[0-9a-f]{8,17}")
# As machines spell one; for people it is `EU (Ireland)`.
REGION: Final = re.compile(r"[a-z]{2,4}(?:-[a-z]{3,12}){1,3}-[0-9]{1,2}")
# What a metric's namespace and dimensions are in Amazon's own spelling of resources; the first that can be filled in.
ARNS: Final[Mapping[str, tuple[str, ...]]] = {
    "AWS/EC2": ("ec2:{at}:instance/{InstanceId}",),
    "AWS/RDS": ("rds:{at}:db:{DBInstanceIdentifier}", "rds:{at}:cluster:{DBClusterIdentifier}"),
    "AWS/Lambda": ("lambda:{at}:function:{FunctionName}",),
    "AWS/SQS": ("sqs:{at}:{QueueName}",),
    "AWS/SNS": ("sns:{at}:{TopicName}",),
    "AWS/DynamoDB": ("dynamodb:{at}:table/{TableName}",),
    **dict.fromkeys(
        ("AWS/ECS", "ECS/ContainerInsights"),
        ("ecs:{at}:service/{ClusterName}/{ServiceName}", "ecs:{at}:cluster/{ClusterName}"),
    ),
    "AWS/ElastiCache": ("elasticache:{at}:cluster:{CacheClusterId}",),
    "AWS/Kinesis": ("kinesis:{at}:stream/{StreamName}",),
    "AWS/ELB": ("elasticloadbalancing:{at}:loadbalancer/{LoadBalancerName}",),
    "AWS/ApplicationELB": ("elasticloadbalancing:{at}:loadbalancer/{LoadBalancer}",),
    "AWS/NetworkELB": ("elasticloadbalancing:{at}:loadbalancer/{LoadBalancer}",),
}
AMAZON: Final = "AWS/"
DIMENSIONS_MAX: Final = 64


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of a message; of what SNS hands to a function one for each record."""
    notes = Notes()
    value = read_json(body, notes)
    records = items_of(value.get("Records")) if isinstance(value, Mapping) else []
    if records and all(isinstance(object_of(one).get("Sns"), Mapping) for one in records):
        inner = [one["Sns"] for one in records]
        return each(inner, notes, lambda one, at, noted: _message(one, f"/Records{at}/Sns", noted))
    return each(value, notes, _message)


def _message(envelope: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one message: in its envelope, or without."""
    kind = text_in(envelope, ["Type"], RAW_MAX, notes)
    if kind in CONFIRMATIONS:
        return _confirmation(envelope, kind, pointer, notes)
    message = envelope.get("Message")
    if isinstance(message, Mapping) and _is_alarm(message):
        notes.add("Message is an object, not the text of one")
        return _alarm(message, envelope, pointer, notes)
    if "TopicArn" not in envelope and message is None:
        return _alarm(envelope, {}, pointer, notes)
    if not isinstance(message, str) or not message.strip():
        raise unreadable("Message", "is required: without it nothing is said")
    try:
        inner = read_json(message.encode("utf-8", "replace"), notes)
    except Unreadable:
        return _words(envelope, message, pointer, notes)
    if not isinstance(inner, Mapping) or not _is_alarm(inner):
        return _words(envelope, message, pointer, notes)
    return _alarm(inner, envelope, pointer, notes)


def _is_alarm(message: Mapping[str, Any]) -> bool:
    return "AlarmName" in message or "alarmData" in message or "alarmName" in object_of(message.get("detail"))


def _alarm(message: Mapping[str, Any], envelope: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an alarm, whichever of its shapes it has."""
    facts = _Alarm(message, notes)
    status = STATES.get(facts.state.strip().upper(), Status.UNSPECIFIED)
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {facts.state or '(absent)'}")
    when = time_of(facts.time, "StateChangeTime", notes) or time_of(envelope.get("Timestamp"), "Timestamp", notes)
    labels, resource = _resource(facts, envelope, notes)
    return ParsedSignal(
        dedup_key=facts.key(notes),
        status=status,
        status_raw=facts.state,
        # CloudWatch knows no severity, and the name of an alarm is free text.
        # A subject is cut at a hundred characters, and lacks where there is no envelope.
        summary=line_of(f"{facts.state or 'alarm'}: {facts.name}", "AlarmName", notes),
        description="\n".join(filter(None, (facts.description, facts.reason)))[:DESCRIPTION_MAX],
        rule_name=facts.name[:RULE_MAX],
        event_time=when,
        # An OK does not say when the alarm began: the beginning is unknown for both, so that they belong together.
        end_time=when if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        warnings=notes.texts,
        body_pointer=pointer,
    )


class _Alarm:
    """An alarm's facts out of any of its shapes."""

    def __init__(self, message: Mapping[str, Any], notes: Notes) -> None:
        # an event of EventBridge has them in `detail`, a call of a function in `alarmData`
        inner = object_of(message.get("detail")) or object_of(message.get("alarmData"))
        state = object_of(inner.get("state"))
        self.configuration = object_of(inner.get("configuration"))
        self.name = word_of(inner.get("alarmName") or message.get("AlarmName"), KEY_MAX, "AlarmName", notes)
        self.arn = word_of(_arn_of(message), DESCRIPTION_MAX, "AlarmArn", notes)
        self.account = word_of(_first(message, "AWSAccountId", "accountId", "account"), KEY_MAX, "AWSAccountId", notes)
        self.region = word_of(_first(message, "Region", "region"), KEY_MAX, "Region", notes)
        self.state = word_of(state.get("value") or message.get("NewStateValue"), RAW_MAX, "NewStateValue", notes)
        previous = object_of(inner.get("previousState")).get("value") or message.get("OldStateValue")
        self.before = word_of(previous, RAW_MAX, "OldStateValue", notes)
        self.time = state.get("timestamp") or message.get("StateChangeTime") or message.get("time")
        self.reason = text_of(state.get("reason") or message.get("NewStateReason"))
        self.description = text_of(self.configuration.get("description") or message.get("AlarmDescription"))
        self.rule = text_of(self.configuration.get("alarmRule") or message.get("AlarmRule"))
        self.trigger = object_of(message.get("Trigger"))
        # Of an alarm over many series each has a state of its own.
        series = object_of(_first(inner, "alarmContributor") or _first(message, "AlarmContributor", "alarmContributor"))
        identity = _first(series, "id", "Id") or message.get("AlarmContributorId")
        self.series = word_of(identity, KEY_MAX, "alarmContributor.id", notes)
        attributes = _first(series, "attributes", "Attributes") or message.get("AlarmContributorAttributes")
        self.attributes = object_of(attributes)
        if not self.name and not self.arn:
            raise unreadable("AlarmName", "is required: it is neither an alarm of CloudWatch nor a message of SNS")
        self.name = self.name or self.arn.rpartition(":")[2][:KEY_MAX]

    def key(self, notes: Notes) -> str:
        """Return the alarm's name in all of Amazon's cloud; older ones are told by account, region and name."""
        key = key_of(self.arn, "AlarmArn", notes) or bounded_key(self.account, self.region, self.name)
        return bounded_key(key, self.series) if self.series else key

    def metrics(self) -> Iterator[tuple[str, str]]:
        """Yield namespace and name of the metrics."""
        yield text_of(self.trigger.get("Namespace")), text_of(self.trigger.get("MetricName"))
        for metric in self._metrics():
            yield text_of(_first(metric, "Namespace", "namespace")), text_of(_first(metric, "MetricName", "name"))

    def dimensions(self) -> Iterator[tuple[str, str]]:
        """Yield the dimensions of all metrics: a list of names and values, or an object."""
        yield from ((name, text_of(value)) for name, value in list(self.attributes.items())[:DIMENSIONS_MAX])
        for holder in (self.trigger, *self._metrics()):
            held = _first(holder, "Dimensions", "dimensions")
            for one in map(object_of, items_of(held)[:DIMENSIONS_MAX]):
                name = _first(one, "name", "Name")
                named = [(name, _first(one, "value", "Value"))] if name is not None else list(one.items())[:1]
                yield from ((text_of(left), text_of(right)) for left, right in named)
            for name, value in list(object_of(held).items())[:DIMENSIONS_MAX]:
                yield name, text_of(value)

    def _metrics(self) -> Iterator[Mapping[str, Any]]:
        for holder in (self.trigger.get("Metrics"), self.configuration.get("metrics")):
            for one in items_of(holder)[:DIMENSIONS_MAX]:
                stat = object_of(_first(object_of(one), "MetricStat", "metricStat"))
                yield object_of(_first(stat, "Metric", "metric"))


def _arn_of(message: Mapping[str, Any]) -> Any:
    """Return the alarm's name as Amazon spells it; an event lists it among its resources."""
    listed = [one for one in items_of(message.get("resources")) if isinstance(one, str) and ":alarm:" in one]
    return _first(message, "AlarmArn", "alarmArn") or (listed[0] if listed else None)


def _first(value: Mapping[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _resource(facts: _Alarm, envelope: Mapping[str, Any], notes: Notes) -> tuple[dict[str, str], dict[str, str]]:
    """Return labels and resource. `Region` is for people (`EU (Ireland)`): the machine's name stands in ARNs."""
    dimensions = labels_of(facts.dimensions(), notes, "Dimensions")
    single = {name: value for name, value in dimensions.items() if "," not in value}
    namespaces = {namespace for namespace, _ in facts.metrics() if namespace}
    names = KUBERNETES if "Namespace" in single or namespaces == {INSIGHTS} else DIMENSIONS
    # Who measures himself calls things as everybody does: `service`, `host`, `Environment`. But to Amazon's own agent
    # `instance` is a disk or processor, which every Windows machine calls alike: `C:`, `_Total`.
    own = namespaces and not any(namespace.startswith(AMAZON) for namespace in namespaces)
    named = {name: value for name, value in firsts(single).items() if own and name != "instance"}
    named |= {"cloud_provider": "aws", "account_id": facts.account}
    named |= {"region": facts.region} if REGION.fullmatch(facts.region) else {}
    named |= {name: single[dimension] for dimension, name in names.items() if dimension in single}
    topic = text_of(envelope.get("TopicArn"))
    match = ARN.fullmatch(facts.arn) or ARN.fullmatch(topic)
    if match:
        named |= {"region": match["region"], "account_id": match["account"] or facts.account}
    if match and len(namespaces) == 1:
        place = f"{named['region']}:{named['account_id']}"
        named["cloud_resource_id"] = _resource_arn(match["partition"], namespaces.pop(), single | {"at": place})
    found = resource_of({name: value for name, value in named.items() if value})
    metrics = list(facts.metrics())
    said = [
        ("alarm_name", facts.name),
        ("alarm_arn", facts.arn),
        ("old_state", facts.before),
        ("account_id", facts.account),
        ("region", facts.region),
        ("topic_arn", topic),
        ("alarm_rule", facts.rule),
        ("alarm_contributor", facts.series),
        *(("metric_namespace", namespace) for namespace, _ in metrics),
        *(("metric_name", name) for _, name in metrics),
    ]
    return {**labels_of(said, notes, "the alarm"), **dimensions}, found


def _resource_arn(partition: str, namespace: str, values: Mapping[str, str]) -> str:
    """Return a resource as Amazon spells it; nothing when a part of its name is missing, or a list.

    What agents measure (CWAgent) is of an instance.
    """
    measured = not namespace.startswith(AMAZON) and INSTANCE.fullmatch(values.get("InstanceId", ""))
    for template in ARNS.get(namespace, ARNS["AWS/EC2"] if measured else ()):
        try:
            return f"arn:{partition}:{template.format_map(values)}"
        except KeyError:
            continue
    return ""


def _confirmation(envelope: Mapping[str, Any], kind: str, pointer: str, notes: Notes) -> ParsedSignal:
    """Read a confirmation: it is kept for an operator, and opens nothing."""
    topic = text_in(envelope, ["TopicArn"], KEY_MAX, notes)
    if not topic:
        raise unreadable("TopicArn", "is required: nobody knows what is to be confirmed")
    notes.add(CONFIRMATIONS[kind])
    identity = key_of(envelope.get("MessageId"), "MessageId", notes)
    when = time_of(envelope.get("Timestamp"), "Timestamp", notes)
    return ParsedSignal(
        dedup_key=bounded_key("confirmation", topic, kind, identity or str(when)),
        status=Status.OCCURRENCE,
        status_raw=kind,
        summary=line_of(f"{kind} of {topic}", "TopicArn", notes),
        description=CONFIRMATIONS[kind],
        event_time=when,
        start_time=when,
        labels=labels_of([("topic_arn", topic), ("message_id", identity)], notes, "the message"),
        warnings=notes.texts,
        test=True,
        body_pointer=pointer,
        kind=Kind.NOTE,
    )


def _words(envelope: Mapping[str, Any], message: str, pointer: str, notes: Notes) -> ParsedSignal:
    """Read a message of something else than CloudWatch: its words are kept, its state is not known."""
    need_object(envelope, "")
    topic = text_in(envelope, ["TopicArn"], KEY_MAX, notes)
    subject = line_of(envelope.get("Subject"), "Subject", notes)
    first = line_of(message.strip().partition("\n")[0], "Message", notes)
    notes.add("status is not understood: the message is no alarm of CloudWatch")
    return ParsedSignal(
        dedup_key=hashed("message", topic, subject or message),
        summary=subject or first or f"a message of {topic or 'SNS'}",
        description=bounded(message, DESCRIPTION_MAX, "Message", notes),
        event_time=time_of(envelope.get("Timestamp"), "Timestamp", notes),
        labels=labels_of([("topic_arn", topic)], notes, "the message"),
        warnings=notes.texts,
        body_pointer=pointer,
    )
