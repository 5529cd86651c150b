"""`qvm-policy graph`: draws who may do what to whom, as a graph for Graphviz.

Every edge is a decision: for each service and argument of a rule, the policy is asked about a
request of each VM to each other. For a `*` in an argument the request has a text that no rule
names, so an edge holds for everything that is not named elsewhere.
"""

from __future__ import annotations

from pedos_protocol.device_classes import VERBS, class_names, services
from pedos_protocol.errors import CallError
from pedos_protocol.names import natural_key

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.answers import DONE
from pedos_cli.output import show
from pedos_cli.policy_witness import witness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pedos_dom0.policy.reading import Loaded
    from pedos_dom0.policy.system import System

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

    Edges = dict[tuple[str, str, str], list[str]]

DECISIONS_MAX = 1_000_000
"""Requests to try: some ten seconds. A larger graph would be unreadable."""

LABELS_MAX = 12
"""Lines on one edge; further ones are counted."""

LABEL_MAX = 128
"""Characters of such a line."""

ANY_SERVICE = "any.other"
"""Stands for the services that no rule names."""

STYLES = {"allow": "style=solid", "ask": "style=dashed"}

DESCRIPTION = (
    "Write a graph in the language of Graphviz: an arrow leads from a VM that may ask to the "
    "target of the request, solid for allow and dashed for ask, with the services and arguments "
    "of the rules. Every arrow is a decision of the policy, so rules that others hide draw none."
)
EXAMPLES = (
    ("qvm-policy graph", "all of it: dot -Tsvg makes a picture of what it prints"),
    ("qvm-policy graph --vm work --service device.attach.block", "a part of it"),
    ("qvm-policy graph --system vms.json --policy-dir ./policy.d", "without a running service"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `graph` takes."""
    parser.add_argument(
        "--service", metavar="SERVICE", action="append", help="only this service; repeatable"
    )
    parser.add_argument(
        "--vm", metavar="VM", action="append", help="only arrows from or to this VM; repeatable"
    )
    policy_engine.add_trial_options(parser)
    policy_engine.add_system_option(parser)
    parser.add_argument("--json", action="store_true", help="print the arrows as JSON")


def run(session: Session) -> int:
    """Print the graph."""
    args = session.args
    loaded = policy_engine.read_good(args, policy_files.folders(args), policy_engine.replaced(args))
    facts = policy_engine.system(session)
    names = sorted(facts.domains, key=natural_key)
    asked = patterns(loaded, args.service)
    targets = [*names, "@default"]
    if any(rule.target.startswith("@dispvm") for rule in loaded.rules):
        targets.append("@dispvm")
    count = sum(map(len, asked.values())) * len(names) * len(targets)
    if count > DECISIONS_MAX:
        raise CallError(
            "failed",
            f"the graph would take {count} decisions, and {DECISIONS_MAX} is the most",
            {"hint": "--service SERVICE for one service at a time"},
        )
    for vm in args.vm or ():
        if vm not in facts.domains:
            session.note(f"warning: there is no VM {show(vm, 64)}")
    for service in args.service or ():
        if service not in asked:
            session.note(f"warning: {show(service, 64)} is no service, as device.attach.block is")
    edges: Edges = {}
    for service, arguments in asked.items():
        for source in names:
            for target in targets:
                if args.vm and source not in args.vm and target not in args.vm:
                    continue
                requests = [
                    (argument, (service, witness(service, argument), source, target))
                    for argument in arguments
                ]
                _add(edges, loaded, facts, requests)
    if args.json:
        output.put_json({"edges": [_edge_json(key, labels) for key, labels in edges.items()]})
        return DONE
    for line in dot(names if not args.vm else (), edges):
        output.put(line)
    return DONE


def _add(
    edges: Edges,
    loaded: Loaded,
    facts: System,
    requests: Sequence[tuple[str, tuple[str, str, str, str]]],
) -> None:
    """Add the decisions about one service between two VMs; the first request is that for `*`."""
    general: tuple[str, tuple[str, ...]] | None = None
    for argument, request in requests:
        service, _, source, target = request
        decision = policy_engine.decide(loaded, facts, request, trace=False)
        ends: tuple[str, ...] = ()
        if decision.verdict == "allow":
            ends = (decision.target or target,)
        elif decision.verdict == "ask":
            chosen = decision.candidates
            ends = (target,) if target in chosen else tuple(chosen)
        if general is None:
            general = (decision.verdict, ends)
        elif general == (decision.verdict, ends):
            continue  # a decision that is the same for every argument is drawn once
        label = f"{'*' if service == ANY_SERVICE else service} {argument}"
        for end in ends:
            labels = edges.setdefault((source, end, decision.verdict), [])
            if label not in labels:
                labels.append(label)


def _edge_json(key: tuple[str, str, str], labels: Sequence[str]) -> dict[str, object]:
    source, target, verdict = key
    return {"source": source, "target": target, "verdict": verdict, "services": list(labels)}


def patterns(loaded: Loaded, only: Sequence[str] | None) -> dict[str, list[str]]:
    """Return each service that the rules name, with the arguments that they have for it.

    The first argument of each is `*`.
    """
    named: dict[str, list[str]] = {}
    for rule in loaded.rules:
        for service in _services(rule.service):
            named.setdefault(service, ["*"])
    for service in only or ():
        named.setdefault(service, ["*"])
    for rule in loaded.rules:
        spoken_of = _services(rule.service)
        for service in named if rule.service == "*" else spoken_of:
            if service in named and rule.argument not in named[service]:
                named[service].append(rule.argument)
    return {key: some for key, some in named.items() if not only or key in only}


def _services(word: str) -> tuple[str, ...]:
    if word == "*":
        return (ANY_SERVICE,)
    parts = word.split(".")
    if len(parts) != 3 or parts[0] != "device":
        return (word,)
    verbs = VERBS if parts[1] == "*" else (parts[1],)
    classes = class_names() if parts[2] == "*" else (parts[2],)
    return services(verbs, classes)


def dot(names: Iterable[str], edges: Mapping[tuple[str, str, str], Sequence[str]]) -> Iterator[str]:
    """Yield the lines of the graph. Texts are quoted and escaped: none can become markup."""
    yield "digraph policy {"
    yield "  rankdir=LR;"
    yield "  node [shape=box];"
    drawn = dict.fromkeys(names)
    for source, target, _verdict in edges:
        drawn[source] = drawn[target] = None
    for name in drawn:
        yield f"  {quoted(name)};"
    for (source, target, verdict), labels in edges.items():
        some = [quoted(label)[1:-1] for label in labels[:LABELS_MAX]]
        if len(labels) > LABELS_MAX:
            some.append(f"and {len(labels) - LABELS_MAX} more")
        # \l ends a line of a label and aligns it left; it is the only escape that is intended.
        label = "".join(f"{each}\\l" for each in some)
        style = STYLES.get(verdict, "style=dotted")
        yield f'  {quoted(source)} -> {quoted(target)} [{style}, label="{label}"];'
    yield "}"


def quoted(text: str) -> str:
    """Return `text` as a string of the language: no escape or quote in it has a meaning."""
    harmless = show(text, LABEL_MAX).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{harmless}"'
