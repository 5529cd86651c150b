"""Which reasons say more than the rule and the verdict beside them."""

from __future__ import annotations

import pytest
from pedos_protocol.reasons import DEFAULT_DENY, said, says_more


@pytest.mark.parametrize(
    ("reason", "more"),
    [
        (DEFAULT_DENY, False),
        (said("30-user.policy:4", "deny"), False),
        (said("30-user.policy:4", "allow"), True),
        (said("30-user.policy:5", "deny"), True),
        ("30-user.policy:4 says allow, but 'work' would have to be started", True),
        (None, True),
    ],
)
def test_a_reason_that_repeats_rule_and_verdict_says_no_more(reason: object, more: bool) -> None:
    assert says_more(reason, "30-user.policy:4", "deny") is more
