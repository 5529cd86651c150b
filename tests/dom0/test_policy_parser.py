"""The parser: every line a rule or an error of its own. tests/policy has the corpora."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pedos_dom0.policy import lines, parser
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.parser import PolicyError, parse_file

RULE = "device.attach.block * dom0 work allow\n"


def errors_of(text: str | bytes) -> list[str]:
    _, errors = parse_file("x.policy", text)
    return [f"{e.line}:{e.column}: {e.message}" for e in errors]


def test_a_rule_knows_where_it_stands_and_how_it_was_written() -> None:
    text = "# one\n\ndevice.attach.usb\t+sys-usb:1-2  @adminvm   work deny notify=no\n"
    (rule,), errors = parse_file("30-user.policy", text)
    assert errors == []
    assert rule.where == "30-user.policy:3"
    assert rule.text == "device.attach.usb +sys-usb:1-2 @adminvm work deny notify=no"
    assert dict(rule.parameters) == {"notify": "no"}


def test_rules_and_their_parameters_cannot_be_changed() -> None:
    (rule,), _ = parse_file("x.policy", RULE.strip() + " read-only=yes")
    with pytest.raises(AttributeError):
        rule.action = "deny"  # type: ignore[misc]
    with pytest.raises(TypeError):
        rule.parameters["read-only"] = "no"  # type: ignore[index]


def test_the_good_lines_of_a_bad_file_are_still_read() -> None:
    rules, errors = parse_file("x.policy", f"{RULE}nonsense\n{RULE}")
    assert [rule.line for rule in rules] == [1, 3]
    assert [error.line for error in errors] == [2]


def test_bytes_that_are_not_utf8_are_placed_by_character_not_by_byte() -> None:
    text = RULE.encode() + b"# \xc3\xb6 \xff\n" + RULE.encode() + b"\xc3"
    assert errors_of(text) == ["2:5: byte 0xff is not UTF-8", "4:1: byte 0xc3 is not UTF-8"]


def test_a_byte_order_mark_is_named() -> None:
    assert errors_of(b"\xef\xbb\xbf" + RULE.encode())[0].startswith("1:1: character U+FEFF")


@pytest.mark.parametrize("where", ["# comment \0", "device.attach.block \0"])
def test_a_nul_is_an_error_even_in_a_comment(where: str) -> None:
    column = where.index("\0") + 1
    assert errors_of(where) == [f"1:{column}: a NUL character; this is not a text file"]


def test_a_lone_carriage_return_does_not_hide_a_rule() -> None:
    """A terminal shows only what follows it, so a reader would not see what is in force."""
    line = "device.attach.block * dom0 work allow\r# comment"
    assert errors_of(line)[0].startswith("1:38: character U+000D")


def test_rules_have_a_greatest_length_and_comments_have_not() -> None:
    fits = RULE.strip().ljust(lines.LINE_MAX)
    assert errors_of(fits) == []
    message = f"line of {lines.LINE_MAX + 1} characters"
    assert errors_of(fits + " ") == [f"1:{lines.LINE_MAX + 1}: {message}"]
    assert errors_of("#" * 100_000) == []


def test_a_file_that_is_no_policy_by_its_size_is_not_parsed() -> None:
    (error,) = errors_of("#" * (parser.FILE_MAX + 1))
    assert error.startswith("0:0: file of more than")
    assert errors_of(b"#" * (parser.FILE_MAX + 1)) == [error.replace("characters", "bytes")]


def test_too_many_rules_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "RULES_MAX", 5)
    assert errors_of(RULE * 5) == []
    rules, errors = parse_file("x.policy", RULE * 9)
    assert len(rules) == 5
    assert errors == [PolicyError("x.policy", 6, 1, "more than 5 rules in one file")]


def test_too_many_errors_end_the_file() -> None:
    errors = errors_of("x\n" * 10_000)
    assert len(errors) == parser.ERRORS_MAX + 1
    assert errors[-1].endswith("errors; the rest of the file was not read")


def test_what_an_error_repeats_is_bounded_and_printable() -> None:
    for text in ("\x1b[31m", "é" * 400, "@" + "x" * 500, "'\"" * 100):
        for error in errors_of(f"device.attach.block * {text} work allow"):
            assert len(error) < 200
            assert error.isascii()
            assert error.isprintable()


@given(st.text() | st.binary())
@example("device.attach.block * dom0 work allow x= x=")
@example("+ + + + +")
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_text_gives_rules_or_errors(text: str | bytes) -> None:
    rules, errors = parse_file("x.policy", text)
    assert all(isinstance(rule, Rule) for rule in rules)
    for error in errors:
        assert str(error).isprintable()


WORDS = st.sampled_from(
    [
        *("device.attach.block", "device.*.usb", "device.", "*", "+", "+a:b:c", "+::"),
        *("@anyvm", "@tag:x", "@", "dom0", "work", "allow", "ask", "deny"),
        *("read-only=yes", "notify=no", "notify=", "=x", "#", "!", "!include"),
        *("\t", "\0", "\x1b", "é"),
    ]
)


@given(st.lists(st.lists(WORDS, max_size=8).map(" ".join), max_size=5).map("\n".join))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_line_of_words_is_a_rule_or_blank_or_has_an_error_of_its_own(text: str) -> None:
    rules, errors = parse_file("x.policy", text)
    told = {rule.line for rule in rules} | {error.line for error in errors}
    assert not {rule.line for rule in rules} & {error.line for error in errors}
    for number, line in enumerate(text.split("\n"), start=1):
        silent = not line.strip(" \t") or line.lstrip(" \t").startswith("#")
        assert number in told or silent


def test_an_error_shows_its_line_with_a_caret_and_what_would_be_right() -> None:
    _, (error,) = parse_file("30-user.policy", "\ts.A\t*  @anyvm  work\tallow  autostrat=no")
    assert error.render().splitlines() == [
        "30-user.policy:1:29: no parameter 'autostrat'",
        "     s.A *  @anyvm  work allow  autostrat=no",
        "                                ^",
        "    help: did you mean autostart?",
    ]


def test_an_error_without_a_place_is_one_line() -> None:
    assert PolicyError("30-user.policy", 0, 0, "cannot be read").render().count("\n") == 0


def test_rules_that_decide_the_same_share_what_they_decide() -> None:
    rules, _ = parse_file("x.policy", "s.A * * work allow user=root\n" * 2)
    assert rules[0].outcome is rules[1].outcome


@pytest.mark.parametrize(
    ("rule", "autostart", "notify"),
    [
        ("allow", True, False),
        ("ask", True, False),
        ("deny", True, True),
        ("deny notify=no", True, False),
        ("allow autostart=no notify=yes", False, True),
    ],
)
def test_what_is_left_out_has_its_usual_meaning(rule: str, autostart: bool, notify: bool) -> None:
    (parsed,), _ = parse_file("x.policy", f"s.A * * * {rule}")
    assert (parsed.outcome.autostart, parsed.outcome.notify) == (autostart, notify)
