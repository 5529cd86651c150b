"""Fuzzes the parser and the evaluator: any text is rules or errors, any request a Decision.

And any folder is a policy or errors; and on cases made as the reference's are, the engine and a
naive reading of the language agree.

    python -m tests.policy.fuzz_policy [SECONDS] [--seed N]

The texts are policies by chance with some of their characters and words changed, whole and cut
into bytes; what they leave of good rules is asked requests that are damaged likewise. A failure
prints the seed with which it comes again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from typing import Any

from pedos_dom0.policy.evaluate import Decision, evaluate
from pedos_dom0.policy.model import PolicyError, Rule
from pedos_dom0.policy.parser import Directive, parse
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System

from . import naive, odd_folders, plain, random_cases, random_policies
from .outcomes import outcome

SECONDS = 60.0
REQUESTS = 5  # for each text
# Of the texts, there are folders for so many: they take far longer.
FOLDERS_SHARE = 0.1
# Characters of an error of the folders: one about a chain of includes has all of their paths.
LONGEST_MESSAGE = 12_000
VERDICTS = ("allow", "ask", "deny")


def check_parser(rnd: random.Random) -> list[Rule]:
    """One text: nothing raises, and each line is a rule, a directive, nothing, or has an error."""
    text = random_policies.nearly_a_policy(rnd)
    content: str | bytes = text
    if rnd.random() < 0.5:
        damaged = bytearray(text.encode("utf-8", "surrogatepass"))
        for _ in range(rnd.randint(0, 3)):
            if damaged:
                damaged[rnd.randrange(len(damaged))] = rnd.randrange(256)
        content = bytes(damaged)
    service = ("s.A", "+x") if rnd.random() < 0.1 else None
    parsed = parse("fuzzed.policy", content, service=service)
    good = {item.line for item in parsed.items}
    bad = {error.line for error in parsed.errors}
    assert not good & bad, "a line with an error was used"
    for error in parsed.errors:
        assert isinstance(error, PolicyError)
        rendered = error.render()
        assert all(line.isprintable() for line in rendered.split("\n")), rendered
        assert len(error.message) < 200, error.message
    assert all(isinstance(item, Rule | Directive) for item in parsed.items)
    return [item for item in parsed.items if isinstance(item, Rule)]


def check_evaluator(rnd: random.Random, rules: list[Rule]) -> None:
    """Requests of any kind: a decision each, which is a deny where it is no request."""
    system, snapshot = random_policies.system(rnd), Snapshot(rules)
    for _ in range(REQUESTS):
        request = random_policies.nearly_a_request(rnd)
        for trace in (False, True):
            decision = evaluate(request, snapshot, system, trace)
            assert isinstance(decision, Decision)
            assert decision.verdict in VERDICTS
            assert (decision.verdict == "ask") == bool(decision.candidates)
            assert (decision.verdict == "allow") == (decision.target is not None)
            assert decision.default_target is None or decision.default_target in decision.candidates
            assert len(decision.reason) < 1000
            decision.to_json(trace)
            if decision.rule is not None:
                assert decision.rule is plain.deciding(request, snapshot.rules, system)


def check_folders(rnd: random.Random) -> None:
    """Whatever is in the folders: rules or errors, and texts that can be shown and sent."""
    found = odd_folders.loaded(rnd)
    assert len(found.snapshot) == (0 if found.errors else len(found.rules))
    texts = [*found.files, *(rule.where for rule in found.rules)]
    for error in found.errors:
        texts += [error.file, *error.render().split("\n")]
        assert len(error.message) < LONGEST_MESSAGE, error.message
    assert all(text.isprintable() for text in texts), texts


THEIR_SYSTEM = System.from_json({"domains": random_cases.VMS})


def check_case(case: dict[str, Any]) -> None:
    """The engine comes to what is read off the language's description."""
    assert outcome(case, THEIR_SYSTEM) == naive.outcome(**case, vms=random_cases.VMS), case


def once(seed: str) -> None:
    rnd = random.Random(seed)
    check_evaluator(rnd, check_parser(rnd))
    check_case(random_cases.case(rnd))
    if rnd.random() < FOLDERS_SHARE:
        check_folders(rnd)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.policy.fuzz_policy", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(1 << 32)))
    arguments = parser.parse_args(argv)
    end, number = time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        seed = f"{arguments.seed}/{number}"
        try:
            once(seed)
        except Exception:
            traceback.print_exc()
            print(f"python -m tests.policy.fuzz_policy fails with the seed {seed}", file=sys.stderr)
            return 1
        number += 1
    print(f"policy: {number:,} texts and {REQUESTS * number:,} requests, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
