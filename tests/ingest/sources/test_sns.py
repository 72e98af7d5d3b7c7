"""What SNS delivers, by Amazon's documentation: alarms in four shapes, confirmations, and words of others."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Severity, Status, Unreadable
from services.ingest.sources.sns import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("sns", "text/plain; charset=UTF-8")
TOPIC = "arn:aws:sns:eu-west-1:111122223333:alarms"
ALARM_ARN = "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:cpu-high"
WHEN = "2026-03-01T10:00:00.123+0000"
NANOS = 1772359200123000000
TRIGGER = {
    "MetricName": "CPUUtilization",
    "Namespace": "AWS/EC2",
    "Dimensions": [{"value": "i-0abc", "name": "InstanceId"}],
    "Period": 300,
    "Unit": None,
}
ALARM = {
    "AlarmName": "cpu-high",
    "AlarmDescription": None,
    "AWSAccountId": "111122223333",
    "NewStateValue": "ALARM",
    "NewStateReason": "Threshold Crossed",
    "StateChangeTime": WHEN,
    "Region": "EU (Ireland)",
    "AlarmArn": ALARM_ARN,
    "OldStateValue": "OK",
    "Trigger": TRIGGER,
}
COMPOSITE = {
    "AlarmName": "shop-down",
    "AlarmDescription": "all of it",
    "AWSAccountId": "111122223333",
    "NewStateValue": "ALARM",
    "NewStateReason": "a child went off",
    "StateChangeTime": WHEN,
    "Region": "EU (Ireland)",
    "AlarmArn": "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:shop-down",
    "OldStateValue": "OK",
    "AlarmRule": "ALARM(cpu-high) OR ALARM(errors)",
    "TriggeringChildren": [{"Arn": ALARM_ARN, "State": {"Value": "ALARM", "Timestamp": WHEN}}],
}
STATE = {"value": "ALARM", "reason": "Threshold Crossed", "timestamp": WHEN}
METRIC = {"namespace": "AWS/EC2", "name": "CPUUtilization", "dimensions": {"InstanceId": "i-0abc"}}
METRICS = {"metrics": [{"id": "m1", "metricStat": {"metric": METRIC}, "returnData": True}], "description": "busy"}
EVENTBRIDGE = {
    "source": "aws.cloudwatch",
    "detail-type": "CloudWatch Alarm State Change",
    "account": "111122223333",
    "time": "2026-03-01T10:00:01Z",
    "region": "eu-west-1",
    "resources": [ALARM_ARN],
    "detail": {
        "alarmName": "cpu-high",
        "state": STATE,
        "previousState": {"value": "OK"},
        "configuration": METRICS,
    },
}
FUNCTION = {
    "source": "aws.cloudwatch",
    "alarmArn": ALARM_ARN,
    "accountId": "111122223333",
    "time": WHEN,
    "region": "eu-west-1",
    "alarmData": {"alarmName": "cpu-high", "state": STATE, "configuration": METRICS},
}


def envelope(message: Any, **changes: Any) -> dict[str, Any]:
    """Return a notification of SNS around a message."""
    return {
        "Type": "Notification",
        "MessageId": "3a6a339c-60fc-5718-875e-66cf50fbf89a",
        "TopicArn": TOPIC,
        "Subject": 'ALARM: "cpu-high" in EU (Ireland)',
        "Message": message if isinstance(message, str) else json.dumps(message),
        "Timestamp": "2026-03-01T10:00:02.000Z",
        "SignatureVersion": "2",
        "Signature": "EXAMPLE",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/x.pem",
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
    } | changes


def confirmation(kind: str) -> dict[str, Any]:
    """Return a confirmation."""
    return {
        "Type": kind,
        "MessageId": "8a14e4f3-f3ab-4be0-a12f-681ee8fe214f",
        "Token": "SECRETTOKEN",
        "TopicArn": TOPIC,
        "Message": "You have chosen to subscribe to the topic",
        "SubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=SECRETTOKEN",
        "Timestamp": "2026-03-01T10:00:00.000Z",
    }


def one(body: Any) -> Any:
    """Parse a body with one signal."""
    signals = parse(json.dumps(body).encode(), FACTS)
    assert len(signals) == 1
    return signals[0]


def test_an_alarm_in_its_envelope() -> None:
    """Its name in all of Amazon's cloud is the key; there is no severity, whatever it is called."""
    signal = one(envelope(ALARM))
    assert (signal.dedup_key, signal.status, signal.status_raw) == (ALARM_ARN, Status.FIRING, "ALARM")
    assert (signal.severity, signal.severity_raw) == (Severity.UNSPECIFIED, "")
    assert (signal.event_time, signal.rule_name, signal.summary) == (NANOS, "cpu-high", "ALARM: cpu-high")
    assert signal.resource == {
        "cloud.provider": "aws",
        "cloud.region": "eu-west-1",
        "cloud.account.id": "111122223333",
        "host.id": "i-0abc",
        "cloud.resource_id": "arn:aws:ec2:eu-west-1:111122223333:instance/i-0abc",
    }
    assert [key.key for key in signal.targets] == ["cloud:arn:aws:ec2:eu-west-1:111122223333:instance/i-0abc"]
    assert (signal.labels["metric_name"], signal.labels["old_state"]) == ("CPUUtilization", "OK")


@pytest.mark.parametrize(
    "body", [ALARM, EVENTBRIDGE, envelope(EVENTBRIDGE), FUNCTION, {"Records": [{"Sns": envelope(ALARM)}]}]
)
def test_every_shape_of_an_alarm_says_the_same(body: Any) -> None:
    """Raw delivery, an event, a function's call: key, status, time and target are those of the envelope's."""
    first, signal = one(envelope(ALARM)), one(body)
    assert (signal.dedup_key, signal.status, signal.event_time) == (first.dedup_key, first.status, first.event_time)
    assert (signal.targets, signal.rule_name) == (first.targets, first.rule_name)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("OK", Status.RESOLVED),
        ("INSUFFICIENT_DATA", Status.NO_DATA),
        ("ok", Status.RESOLVED),
        ("BROKEN", Status.UNSPECIFIED),
        (None, Status.UNSPECIFIED),
    ],
)
def test_every_state(word: str | None, status: Status) -> None:
    """A state that Amazon has not is none; all states of an alarm have one key and one beginning."""
    signal = one(envelope(ALARM | {"NewStateValue": word}))
    assert (signal.status, signal.dedup_key, signal.start_time) == (status, ALARM_ARN, None)
    assert (signal.end_time is not None) is (status is Status.RESOLVED)


def test_an_old_alarm_without_its_name_in_the_cloud() -> None:
    """Account, region and name tell it; the machine's name of the region is the topic's."""
    signal = one(envelope({name: value for name, value in ALARM.items() if name != "AlarmArn"}))
    assert signal.dedup_key == "111122223333|EU (Ireland)|cpu-high"
    assert signal.resource["cloud.region"] == "eu-west-1"


def test_a_composite_alarm() -> None:
    """It has a rule and no trigger, so it is about no single thing."""
    signal = one(envelope(COMPOSITE))
    assert (signal.rule_name, signal.targets) == ("shop-down", ())
    assert signal.labels["alarm_rule"] == COMPOSITE["AlarmRule"]


def test_metric_math() -> None:
    """The dimensions stand at the metrics; of several things none is the one that is meant."""
    metrics = [
        {"Id": "e1", "Expression": "m1*2", "ReturnData": True},
        *(
            {"Id": f"m{at}", "MetricStat": {"Metric": TRIGGER | {"Dimensions": [{"name": "InstanceId", "value": at}]}}}
            for at in ("i-1", "i-2")
        ),
    ]
    several = one(envelope(ALARM | {"Trigger": {"Metrics": metrics}}))
    assert (several.labels["InstanceId"], several.targets) == ("i-1,i-2", ())
    single = one(envelope(ALARM | {"Trigger": {"Metrics": metrics[:2]}}))
    assert [key.key for key in single.targets] == ["cloud:arn:aws:ec2:eu-west-1:111122223333:instance/i-1"]


def test_kubernetes_and_other_clusters() -> None:
    """Container Insights names a namespace, and so a workload; a cluster of ECS is none of Kubernetes."""
    names = {"ClusterName": "prod", "Namespace": "shop", "PodName": "checkout"}
    pods = [{"name": name, "value": value} for name, value in names.items()]
    signal = one(envelope(ALARM | {"Trigger": TRIGGER | {"Namespace": "ContainerInsights", "Dimensions": pods}}))
    assert [key.key for key in signal.targets] == ["k8s:prod/shop/pod/checkout"]
    tasks = [{"name": "ClusterName", "value": "prod"}, {"name": "ServiceName", "value": "checkout"}]
    signal = one(envelope(ALARM | {"Trigger": TRIGGER | {"Namespace": "AWS/ECS", "Dimensions": tasks}}))
    assert "k8s.cluster.name" not in signal.resource
    assert [key.kind for key in signal.targets] == ["svc", "cloud"]


@pytest.mark.parametrize("kind", ["SubscriptionConfirmation", "UnsubscribeConfirmation"])
def test_confirmations_open_nothing(kind: str) -> None:
    """An operator must see one; its token and URL stay in the raw body, for who has them can subscribe this door."""
    signal = one(confirmation(kind))
    assert (signal.kind, signal.test, signal.status_raw) == (Kind.NOTE, True, kind)
    assert signal.labels["topic_arn"] == TOPIC
    assert "SECRETTOKEN" not in str(signal)
    assert not signal.links


def test_words_of_others_are_kept_without_a_state() -> None:
    """A topic may carry anything: nothing is assumed of it."""
    for message in ("disk is nearly full\nlook at it", json.dumps({"Event Source": "db"}), "[1]", "{"):
        signal = one(envelope(message, Subject=None))
        assert (signal.status, signal.severity) == (Status.UNSPECIFIED, Severity.UNSPECIFIED)
        assert signal.description == message
    same = one(envelope("a", Subject="backup failed")), one(envelope("b", Subject="backup failed"))
    assert same[0].dedup_key == same[1].dedup_key


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"Type": "Notification", "TopicArn": TOPIC},
        {"Type": "Notification", "TopicArn": TOPIC, "Message": " "},
        {"NewStateValue": "ALARM"},
        {"Type": "SubscriptionConfirmation", "SubscribeURL": "https://evil.example"},
        {"Records": []},
    ],
)
def test_what_names_nothing_is_unreadable(body: Any) -> None:
    """Neither alarm nor message nor topic: there is no signal."""
    with pytest.raises(Unreadable):
        parse(json.dumps(body).encode(), FACTS)


@settings(max_examples=200, deadline=None)
@given(
    body=mutants(
        [
            envelope(ALARM),
            ALARM,
            COMPOSITE,
            EVENTBRIDGE,
            FUNCTION,
            {"Records": [{"Sns": envelope(ALARM)}]},
            confirmation("SubscriptionConfirmation"),
        ]
    )
)
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("sns", body, "text/plain; charset=UTF-8")


@settings(max_examples=100, deadline=None)
@given(message=mutants([ALARM, COMPOSITE]))
def test_mutants_in_an_envelope(message: bytes) -> None:
    """The same for what stands as text in a good envelope."""
    check("sns", json.dumps(envelope(message.decode("utf-8", "replace"))).encode())


def test_each_series_of_an_alarm_has_a_state_of_its_own() -> None:
    """An alarm over many series tells which one changed: it is another alert than the others."""
    arn = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:tables"
    event = {
        "detail-type": "CloudWatch Alarm Contributor State Change",
        "source": "aws.cloudwatch",
        "account": "123456789012",
        "region": "eu-west-1",
        "resources": [arn],
        "detail": {
            "alarmName": "tables",
            "alarmContributor": {"id": "c-1", "attributes": {"TableName": "orders"}},
            "state": {"value": "ALARM", "timestamp": "2026-03-01T10:00:00.000+0000"},
        },
    }
    (signal,) = parse(json.dumps(event).encode(), DeliveryFacts("sns"))
    assert (signal.dedup_key, signal.status) == (f"{arn}|c-1", Status.FIRING)
    assert signal.labels["TableName"] == "orders"


def test_an_alarm_that_is_no_text_is_read_too() -> None:
    """Some hand on the message as an object, and dimensions by their name."""
    alarm = {"AlarmName": "q", "NewStateValue": "OK", "Trigger": {"Dimensions": [{"QueueName": "orders"}]}}
    (signal,) = parse(json.dumps({"Message": alarm}).encode(), DeliveryFacts("sns"))
    assert (signal.rule_name, signal.status, signal.labels["QueueName"]) == ("q", Status.RESOLVED, "orders")
    assert signal.warnings


def measured(namespace: str, **dimensions: str) -> Any:
    """Parse an alarm on a metric of this namespace."""
    pairs = [{"name": name, "value": value} for name, value in dimensions.items()]
    trigger = {"MetricName": "m", "Namespace": namespace, "Dimensions": pairs}
    (signal,) = parse(json.dumps(ALARM | {"Trigger": trigger}).encode(), DeliveryFacts("sns"))
    return signal


@pytest.mark.parametrize(
    ("namespace", "dimensions", "targets"),
    [
        (
            "CWAgent",
            {"InstanceId": "i-0abc12de", "path": "/"},
            ["cloud:arn:aws:ec2:eu-west-1:111122223333:instance/i-0abc12de"],
        ),
        ("CWAgent", {"objectname": "LogicalDisk", "instance": "C:"}, []),
        ("Shop", {"Service": "orders", "InstanceId": "3"}, ["svc:orders"]),
        ("CWAgent", {"host": "ip-10-0-0-1", "path": "/"}, ["host:ip-10-0-0-1"]),
        ("Shop", {"Service": "orders", "Environment": "prod"}, ["svc:prod/orders"]),
        ("AWS/RDS", {"DBClusterIdentifier": "a"}, ["cloud:arn:aws:rds:eu-west-1:111122223333:cluster:a"]),
        ("AWS/ECS", {"ClusterName": "c"}, ["cloud:arn:aws:ecs:eu-west-1:111122223333:cluster/c"]),
        ("ECS/ContainerInsights", {"ClusterName": "c"}, ["cloud:arn:aws:ecs:eu-west-1:111122223333:cluster/c"]),
        ("AWS/Usage", {"Service": "EC2", "Type": "API"}, []),
        ("AWS/Connect", {"InstanceId": "c-1"}, []),
    ],
)
def test_what_an_alarm_is_about(namespace: str, dimensions: dict[str, str], targets: list[str]) -> None:
    """Agents and people who measure themselves call things as everybody does, Amazon by names of its own."""
    assert [key.key for key in measured(namespace, **dimensions).targets] == targets


def test_clusters_and_nodes_of_container_insights_have_no_namespace() -> None:
    """They belong to Kubernetes all the same."""
    resource = measured("ContainerInsights", ClusterName="eks-1", NodeName="ip-10", InstanceId="i-1").resource
    assert resource["k8s.cluster.name"] == "eks-1"
    assert (resource["k8s.node.name"], resource["host.id"]) == ("ip-10", "i-1")


def test_an_event_without_the_name_of_its_alarm_still_has_a_region() -> None:
    """Where the machine's name of a region is told, it is one."""
    (signal,) = parse(json.dumps(EVENTBRIDGE | {"resources": []}).encode(), DeliveryFacts("sns"))
    assert signal.resource["cloud.region"] == "eu-west-1"
    (signal,) = parse(json.dumps(ALARM | {"AlarmArn": None}).encode(), DeliveryFacts("sns"))
    assert "cloud.region" not in signal.resource
