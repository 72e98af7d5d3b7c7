"""How one revision of an incident is decided: pure, standard library only.

Two brakes keep automation back and put people in its place: a cap on how often the same is started for the same
trouble, whoever chose it, and an alert that flaps, after monitoring systems (Nagios and Icinga tell when a service
begins to flap, keep quiet while it does, and tell when it stopped; here what is calm is decided anew instead).
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from services.router.domain import (
    CHAT,
    MAX_PER_HOUR,
    NO_ORDER,
    Brake,
    History,
    Order,
    Outcome,
    Result,
    Rule,
    Rules,
    Snapshot,
    State,
    Verdict,
    shorten,
)

# No playbook's id has a slash, so the starts of agents are counted under names of their own.
AGENT: Final = "agent/"


def decide(snapshot: Snapshot, rules: Rules, history: History, now: datetime, wish: Verdict | None = None) -> Verdict:
    """Decide one revision: over, unreadable, wished in a chat, known to a rule, or not known."""
    if beforehand := _beforehand(snapshot, rules.version, history):
        return beforehand
    # What a person wishes does not flap, and is capped by nobody: it is theirs to say how often.
    if snapshot.facts.get("source") == CHAT and not history.newest:
        # What a person confirmed, and nothing else; without it nobody wished anything.
        return wish or _await("no confirmed wish of a conversation stands behind it", rules.version, for_people=True)
    rule = rules.first(snapshot.facts, history.started)
    if rule:
        return _capped(_apply(rule, snapshot, rules.version, now), rule, history)
    return _unknown(rules.version, history)


def started_by(made: Verdict) -> str:
    """Return under which name the start of a verdict is counted: a playbook, or the template of an agent."""
    names = {Outcome.TRIGGER_AUTOMATION: made.playbook_id, Outcome.DELEGATE_AGENT: made.template_id}
    name = "" if made.state is not State.DECIDED else names.get(made.outcome, "")
    return f"{AGENT}{name}" if name and made.outcome is Outcome.DELEGATE_AGENT else name


def chosen(made: Verdict, history: History, most: int = MAX_PER_HOUR) -> Verdict:
    """Return what a model chose, or a question to people where that was started too often for the same trouble.

    What a model says is what a sender's words may have talked it into: it is bound like a rule.
    """
    name = started_by(made)
    times = history.starts.get(name, 0)
    if not name or times < most:
        return made
    what = f"agents of {made.template_id} were" if made.outcome is Outcome.DELEGATE_AGENT else f"{name} was"
    reason = (
        f"{what} started {times} times within an hour for the same trouble, and without a rule that says otherwise "
        f"{most} is the most: it does not help, a person must look; {made.reason}"
    )
    return replace(
        made,
        reason=shorten(reason),
        outcome=Outcome.ASK_HUMAN,
        playbook_id="",
        template_id="",
        question=b"",
        brake=Brake.CAP,
    )


def _unknown(version: int, history: History) -> Verdict:
    """Return what becomes of what no rule knows: a model, a run for what failed, or people."""
    reason = "no rule matches" if version else "no rule set is published; publish one: opsmesh rules publish"
    if history.started:
        reason += f"; started before and not again: {', '.join(sorted(history.started))}"
    if often := [f"{name} ({times} times)" for name, times in sorted(history.starts.items()) if times >= MAX_PER_HOUR]:
        reason += f"; started often within an hour for the same trouble: {', '.join(often)}"
    if history.killed:
        reason = f"a kill ended what was done about it: whether it is repeated is for people to say; {reason}"
        return _await(reason, version, for_people=True)
    if history.escalated:
        reason = f"run {history.escalated} leaves it to a person: opsmesh agents show {history.escalated}"
        return Verdict(State.DECIDED, reason, Outcome.ASK_HUMAN, rule_set_version=version)
    if failed := history.failed:
        reason = (
            f"execution {failed.execution_id} of {failed.playbook_id or 'a playbook'} ended {failed.result}; {reason}"
        )
        return _await(reason, version, cause=failed.execution_id)
    return _await(reason, version)


def _beforehand(snapshot: Snapshot, version: int, history: History) -> Verdict | None:
    """Return what is decided without looking at a rule, if anything."""
    if history.newest > snapshot.revision:
        reason = f"revision {history.newest} was decided before this one"
        return Verdict(State.CLOSED, reason, result=Result.SUPERSEDED, rule_set_version=version)
    if snapshot.resolved:
        return _respond("the incident is resolved", version)
    # Before `firing`: what cannot be read must not pass for over, either.
    if not snapshot.readable:
        return _await("the status of its newest signal could not be read: a person must look", version, for_people=True)
    if snapshot.flapping and snapshot.facts.get("source") != CHAT:
        return flapping(version, told=history.flapping)
    if not snapshot.firing:
        return _respond(snapshot.why_over or "the sender resolved every alert", version)
    return None


def flapping(version: int, *, told: bool = False) -> Verdict:
    """Return what is decided while an alert flaps: nothing is started, and people are told once."""
    now = "people were told before" if told else "a person must look"
    reason = (
        "an alert of it fires and is over again and again: it flaps, and nothing is started before it is calm; "
        f"then it is decided anew; {now}"
    )
    return Verdict(
        State.DECIDED,
        reason,
        Outcome.ASK_HUMAN,
        rule_set_version=version,
        brake=Brake.FLAPPING,
        quiet=told,
    )


def _respond(reason: str, version: int) -> Verdict:
    return Verdict(State.CLOSED, reason, Outcome.RESPOND, Result.RESPONDED, rule_set_version=version)


def _await(reason: str, version: int, *, for_people: bool = False, cause: str = "") -> Verdict:
    return Verdict(
        State.AWAITING_MODEL,
        shorten(reason),
        rule_set_version=version,
        for_people=for_people,
        order=Order(cause=cause) if cause else NO_ORDER,
    )


def _apply(rule: Rule, snapshot: Snapshot, version: int, now: datetime) -> Verdict:
    """Return what a matching rule says about an incident of this age."""
    age = now - snapshot.open_time if snapshot.open_time else timedelta()
    if age > rule.max_age:
        seconds = int(age.total_seconds())
        reason = f"rule {rule.rule_id} matches, but {seconds} s are more than its {rule.max_age.total_seconds():g} s"
        return Verdict(State.CLOSED, reason, result=Result.STALE, rule_id=rule.rule_id, rule_set_version=version)
    if rule.outcome is Outcome.RESPOND:
        state, result = State.CLOSED, Result.RESPONDED
    else:
        state, result = State.DECIDED, Result.UNSPECIFIED
    return Verdict(
        state=state,
        reason=shorten(rule.text or f"rule {rule.rule_id} matches"),
        outcome=rule.outcome,
        result=result,
        rule_id=rule.rule_id,
        rule_set_version=version,
        playbook_id=rule.playbook_id,
        max_age=rule.max_age,
    )


def _capped(made: Verdict, rule: Rule, history: History) -> Verdict:
    """Return what a rule says, but a question to people once its playbook was started too often for this."""
    times = history.starts.get(rule.playbook_id, 0)
    if made.state is State.CLOSED or made.outcome is not Outcome.TRIGGER_AUTOMATION or times < rule.max_per_hour:
        return made
    reason = (
        f"rule {rule.rule_id} matches, but {rule.playbook_id} was started {times} times within an hour for the same "
        f"trouble, and its max_per_hour is {rule.max_per_hour}: it does not help, a person must look"
    )
    return Verdict(
        State.DECIDED,
        shorten(reason),
        Outcome.ASK_HUMAN,
        rule_id=rule.rule_id,
        rule_set_version=made.rule_set_version,
        max_age=rule.max_age,
        brake=Brake.CAP,
    )
