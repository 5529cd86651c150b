"""What a question looks like, and what typing does to it: no terminal, no service, no clock."""

from __future__ import annotations

from typing import Any
from unicodedata import east_asian_width

import pytest
from pedos_cli.output import in_order
from pedos_cli.prompt_question import CANDIDATES_MAX, Question, lines, parse
from pedos_cli.prompt_queue import ARMING_S, QuestionQueue
from pedos_cli.prompt_waiting import ARMING_AFTER_WITHDRAWAL_S, QUESTIONS_MAX, Full

from tests.asked_question import ASK

PHOTOS = "\u041c\u043e\u0438 \u0444\u043e\u0442\u043e"


def question(call_id: int = 1, now: float = 0.0, **fields: object) -> Question:
    return parse(call_id, {**ASK, **fields}, now)


class FakeScreen:
    """Records what was written; `flushed` counts how often input was discarded."""

    def __init__(self) -> None:
        self.width = 80
        self.encoding = "utf-8"
        self.lines: list[str] = []
        self.prompts: list[str] = []
        self.bells = 0
        self.flushed = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def prompt(self, text: str) -> None:
        self.prompts.append(text)

    def bell(self) -> None:
        self.bells += 1

    def flush_input(self) -> None:
        self.flushed += 1


class Table:
    """A queue of questions with its screen, its answers and a clock that a test moves."""

    def __init__(self, *, once: bool = False) -> None:
        self.screen = FakeScreen()
        self.answers: list[tuple[int, str | None]] = []
        self.lapsed: list[int] = []
        self.now = 0.0
        self.questions = QuestionQueue(self.screen, self._answered, self._lapsed, once=once)

    def _answered(self, question: Question, target: str | None) -> None:
        self.answers.append((question.call_id, target))

    def _lapsed(self, question: Question) -> None:
        self.lapsed.append(question.call_id)

    def ask(self, call_id: int = 1, **fields: object) -> None:
        self.questions.ask(question(call_id, self.now, **fields), self.now)

    def arm(self) -> None:
        self.wait(ARMING_S)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.questions.tick(self.now)

    def type(self, text: str | bytes) -> None:
        self.questions.typed(text.encode() if isinstance(text, str) else text, self.now)


@pytest.fixture
def table() -> Table:
    return Table()


# The question itself


def test_a_question_names_its_parts_for_a_screen_with_words_of_its_own() -> None:
    asked = question(assigned="ask")
    assert (asked.verb, asked.device_class, asked.mode) == ("attach", "block", "ask")
    call = parse(1, CALL, 0.0, "prompt.call")
    assert (call.verb, call.device_class, call.mode) == ("call", "", None)


def test_a_question_shows_who_asks_for_what_and_every_choice() -> None:
    assert lines(question(default="vault"), 80, "utf-8") == [
        "-" * 72,
        "work asks to attach a block device",
        "  device      sys-usb:sda",
        "  identity    0781:5581:4C53",
        "  says it is  SanDisk Ultra",
        "  size        64.0 MiB",
        "  access      read-only",
        "  service     device.attach.block",
        "  request     3f9c01ab77de",
        "which VM gets it?",
        "  1  work",
        "  2  vault   <- default: Enter alone",
        "  n  none: deny it",
    ]


def test_a_question_of_an_assignment_says_so_and_no_other_mode_is_believed() -> None:
    shown = lines(question(source="dom0", assigned="ask"), 80, "utf-8")
    assert shown[1] == "an assignment (ask) asks to attach a block device"
    assert lines(question(source="dom0"), 80, "utf-8")[1] == "dom0 asks to attach a block device"
    for untrusted in ("asks", "", 7, ["ask"]):
        with pytest.raises(ValueError, match="no mode of an assignment"):
            question(source="dom0", assigned=untrusted)


def test_a_question_says_in_words_what_a_device_can_do() -> None:
    stick = {"service": "device.attach.usb", "device_class": "usb", "device": "1-2", "size": None}
    shown = lines(question(**stick, identity="0781:5581:x:u080650u030101"), 80, "utf-8")
    assert shown[3:6] == [
        "  identity    0781:5581:x:u080650u030101",
        "  has         HID: keyboard, mass storage",
        "  says it is  SanDisk Ultra",
    ]


def test_without_a_default_nothing_is_marked() -> None:
    assert not any("default" in line for line in lines(question(), 80, "utf-8"))


@pytest.mark.parametrize(
    ("service", "device_class", "words"),
    [
        ("device.attach.usb", "usb", "attach a USB device"),
        ("device.assign.pci", "pci", "have a PCI device attached at every start"),
        ("device.detach.mic", "mic", "detach a microphone device"),
        ("device.{}.x{0}", "block", "use device.{}.x{0} on a block device"),
        ("", "block", "use  on a block device"),
    ],
)
def test_it_says_what_the_service_does(service: str, device_class: str, words: str) -> None:
    shown = lines(question(service=service, device_class=device_class), 80, "utf-8")
    assert shown[1] == f"work asks to {words}"


def test_nothing_that_a_device_says_reaches_the_terminal_raw() -> None:
    evil = "\x1b[2J\r\n  1  vault\u202e\x07\x9b31m" + "".join(map(chr, range(0x300)))
    shown = lines(question(description=evil), 80, "utf-8")
    assert all(" " <= char <= "~" for line in shown for char in line)
    assert len(shown) == len(lines(question(), 80, "utf-8")) + 1  # its second line, and no more


def test_what_a_device_says_is_in_its_own_letters_where_the_screen_has_them() -> None:
    (line,) = [each for each in lines(question(description=PHOTOS), 80, "utf-8") if PHOTOS in each]
    assert line == f"  says it is  {PHOTOS}"
    assert all(line.isascii() for line in lines(question(description=PHOTOS), 80, "latin-1"))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("letter", ["\u5199", "\u0424", "\xe9", "o\u0301\u0301", "\u05d0 1 "])
def test_letters_of_no_script_reach_the_start_of_a_line(letter: str, encoding: str) -> None:
    description = (letter * 41)[:60]
    plain = lines(question(), 40, encoding)
    shown = lines(question(description=description), 40, encoding)
    before = plain.index("  says it is  SanDisk Ultra")
    said = shown[before : before + 1 + len(shown) - len(plain)]
    assert len(said) > 1 and "size" not in said[-1]
    assert said[0].startswith("  says it is  ")
    assert all(line.startswith("            | ") for line in said[1:])
    for line in map(in_order, said):
        columns = sum(2 if east_asian_width(char) in "WFA" else 1 for char in line)
        assert columns <= 40


@pytest.mark.parametrize("width", [0, 40, 41, 80, 500])
def test_a_long_description_cannot_write_a_choice_at_the_start_of_a_line(width: int) -> None:
    choice = "  1  vault   <- default: Enter alone"
    for padding in range(128 - len(choice)):
        shown = lines(question(description="x" * padding + choice), width, "utf-8")
        assert max(map(len, shown)) < max(width, 40)
        assert [line for line in shown if line.startswith("  1  ")] == ["  1  work"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "work\n"},
        {"source": None},
        {"backend": "-a"},
        {"device": "a b"},
        {"device_class": "floppy"},
        {"identity": "\x1b"},
        {"identity": "a" * 257},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"read_only": 1},
        {"description": b"x"},
        {"request": 5},
        {"service": None},
        {"timeout_s": 1.5},
        {"candidates": []},
        {"candidates": "work"},
        {"candidates": ["work", "work"]},
        {"candidates": ["wo rk"]},
        {"candidates": [f"vm{n}" for n in range(CANDIDATES_MAX + 1)]},
        {"default": "dom0"},
        {"default": ""},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        question(**wrong)


@pytest.mark.parametrize("missing", sorted(set(ASK) - {"size", "default"}))
def test_a_question_without_one_of_its_parts_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(1, {name: value for name, value in ASK.items() if name != missing}, 0.0)


CALL = {
    "request": "3f9c01ab77de",
    "source": "work",
    "service": "test.Open",
    "argument": "+page",
    "candidates": ["vault"],
    "default": "vault",
    "timeout_s": 60,
}


def test_a_call_is_shown_with_its_service_and_argument_and_without_markup() -> None:
    argument = "+<b>\N{RIGHT-TO-LEFT MARK}&`1"
    with pytest.raises(ValueError, match="cannot be shown"):
        parse(1, {**CALL, "argument": argument}, 0.0, "prompt.call")
    shown = lines(parse(1, {**CALL, "argument": "+<b>&`1"}, 0.0, "prompt.call"), 80, "utf-8")
    assert shown[1:4] == [
        "work asks to call test.Open",
        "  argument    +<b>&`1",
        "  service     test.Open",
    ]


def test_no_two_arguments_of_a_call_look_the_same() -> None:
    arguments = ("+", "+(none)", "++", "+-")
    shown = {
        lines(parse(1, {**CALL, "argument": argument}, 0.0, "prompt.call"), 80, "utf-8")[2]
        for argument in arguments
    }
    assert len(shown) == len(arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"argument": "page"},
        {"argument": "+a b"},
        {"argument": "+a\n1"},
        {"argument": "+" + "a" * 512},
        {"argument": None},
        {"service": "a" * 256},
        {"source": "-"},
        {"candidates": []},
    ],
)
def test_a_question_about_a_call_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(1, {**CALL, **wrong}, 0.0, "prompt.call")


# Answers


def test_a_number_and_enter_choose(table: Table) -> None:
    table.ask()
    table.arm()
    table.type("2")
    table.type("\r")
    assert table.answers == [(1, "vault")]
    assert table.screen.lines[-1] == "3f9c01ab77de: yes, vault"


@pytest.mark.parametrize("word", ["n", "N", "d", "no", "deny", " n "])
def test_n_and_d_deny(table: Table, word: str) -> None:
    table.ask(default="work")
    table.arm()
    table.type(word + "\n")
    assert table.answers == [(1, None)]


def test_control_c_denies(table: Table) -> None:
    table.ask(default="work")
    table.arm()
    table.type("1\x03\r")
    assert table.answers == [(1, None)]
    assert table.questions.leaving is None


def test_enter_alone_is_the_default_if_there_is_one(table: Table) -> None:
    table.ask(default="vault")
    table.arm()
    assert table.screen.prompts[-1] == "[60 s] 1-2, n, or Enter for 2: "
    table.type("\r")
    assert table.answers == [(1, "vault")]


def test_enter_alone_asks_again_if_there_is_no_default(table: Table) -> None:
    table.ask()
    table.arm()
    assert table.screen.prompts[-1] == "[60 s] 1-2 or n: "
    table.type("\r")
    assert table.answers == []
    assert table.screen.lines[-1] == "nothing is preselected: 1-2 or n"
    table.arm()
    table.type("1\r")
    assert table.answers == [(1, "work")]


@pytest.mark.parametrize(
    "nonsense",
    [
        "3", "0", "01", "-1", "1.", "1 2", "11", "y", "yes", "work", "vault", " ", "\t", "\x1b[A",
        "\x00", "\u00b2", "\u0661", "1\x1b", "1" * 20, "0" * 16 + "1", "nn", "ls -l",
    ],
)  # fmt: skip
def test_anything_else_and_enter_asks_again(table: Table, nonsense: str) -> None:
    table.ask(default="work")
    table.arm()
    table.type(nonsense)
    table.type("\r")
    assert table.answers == []
    assert "is not a choice" in table.screen.lines[-1]


def test_every_key_alone_and_then_enter_never_means_the_default_by_accident() -> None:
    nothing_typed = b"\x08\x7f\x15\r\n"
    for byte in set(range(256)) - set(nothing_typed) - set(b"1nNdD\x03\x04"):
        table = Table()
        table.ask(candidates=["vault"], default="vault")
        table.arm()
        table.type(bytes([byte]))
        table.type(b"\r")
        assert table.answers == [], byte


def test_a_line_can_be_corrected(table: Table) -> None:
    table.ask()
    table.arm()
    table.type("1x\x7f\x082")
    assert table.screen.prompts[-1].endswith(": 2")
    table.type("\x15n\x151\r")
    assert table.answers == [(1, "work")]


# Input that was not meant for the question


def test_what_is_typed_while_nothing_is_asked_answers_nothing(table: Table) -> None:
    table.type("1\r1\r\r")
    table.ask(default="work")
    assert table.screen.flushed == 1
    table.arm()
    assert table.answers == []
    assert table.screen.prompts[-1].endswith(": ")


def test_what_is_typed_before_the_prompt_shows_the_choices_answers_nothing(table: Table) -> None:
    table.ask(default="work")
    assert table.screen.prompts == ["[60 s] ..."]
    for key in ("1", "\r", "n", "\r", "\x03", "\x04"):
        table.type(key)
    table.arm()
    assert table.answers == []
    assert table.questions.leaving is None


def test_typing_on_keeps_a_question_from_being_armed(table: Table) -> None:
    table.ask(default="work")
    for _ in range(20):
        table.wait(ARMING_S * 0.75)
        table.type("\r")
    table.wait(ARMING_S * 0.75)
    assert "..." in table.screen.prompts[-1]
    table.wait(ARMING_S * 0.25)
    assert "Enter for 1" in table.screen.prompts[-1]
    assert table.answers == []


def test_input_is_flushed_when_a_question_is_shown_and_again_when_it_is_armed(
    table: Table,
) -> None:
    table.ask()
    assert table.screen.flushed == 1
    table.arm()
    assert table.screen.flushed == 2


@pytest.mark.parametrize("paste", ["1\r1\r", "1\r\n", "n\nrm -rf\n", "\r\r", "1\r2"])
def test_several_lines_at_once_are_a_paste_and_answer_nothing(table: Table, paste: str) -> None:
    table.ask(default="work")
    table.arm()
    table.type(paste)
    assert table.answers == []
    assert table.screen.lines[-1] == "several lines came at once, and none of them counts"
    table.type("1\r")
    assert table.answers == []  # not armed again yet


def test_the_lines_of_a_paste_that_comes_in_pieces_answer_nothing_after_the_first_wrong_one(
    table: Table,
) -> None:
    table.ask(default="work")
    table.arm()
    for piece in ("some text", "\r", "1", "\r", "\r"):
        table.type(piece)
    assert table.answers == []


def test_a_second_enter_does_not_answer_the_next_question(table: Table) -> None:
    table.ask(1, default="work")
    table.ask(2, default="vault")
    table.arm()
    table.type("\r")
    table.type("\r")
    table.wait(ARMING_S * 0.9)
    table.type("\r")
    assert table.answers == [(1, "work")]


def test_a_question_after_a_withdrawn_one_takes_longer_to_be_armed(table: Table) -> None:
    table.ask(1, request="aa")
    table.ask(2, request="bb", default="vault")
    table.arm()
    table.type("1")
    table.questions.withdraw("aa", "the asker has gone", table.now)
    table.wait(ARMING_AFTER_WITHDRAWAL_S - 0.1)
    table.type("\r")
    assert (table.answers, table.lapsed) == ([], [1])


# Deadlines, withdrawal, the queue


def test_a_question_that_nobody_answers_is_denied_at_its_deadline(table: Table) -> None:
    table.ask(default="work")
    table.wait(59.9)
    assert table.lapsed == []
    table.wait(0.1)
    assert (table.answers, table.lapsed) == ([], [1])
    assert "withdrawn: no answer came in time" in table.screen.lines[-1]


def test_the_seconds_that_are_left_are_counted_down(table: Table) -> None:
    table.ask(timeout_s=3)
    seen = []
    while (at := table.questions.wake_at(table.now)) is not None:
        table.wait(at - table.now)
        seen.append(table.screen.prompts[-1].partition("]")[0])
    assert list(dict.fromkeys(seen)) == ["[3 s", "[2 s", "[1 s"]
    assert len(seen) <= 6


def test_a_withdrawn_question_tells_why_and_the_next_one_comes(table: Table) -> None:
    table.ask(1, request="aa")
    table.ask(2, request="bb", source="play")
    table.questions.withdraw("aa", "the command that asked has ended", table.now)
    assert (table.answers, table.lapsed) == ([], [1])
    assert "aa: withdrawn: the command that asked has ended" in table.screen.lines
    assert "play asks to attach a block device" in table.screen.lines


def test_a_question_can_be_withdrawn_before_it_was_shown(table: Table) -> None:
    table.ask(1, request="aa")
    table.ask(2, request="bb", source="play")
    table.arm()
    table.questions.withdraw("bb", "late", table.now)
    assert table.lapsed == [2]
    assert table.screen.lines[-1].startswith("bb: play asked to attach a block device, and that")
    table.type("1\r")
    assert (table.answers, table.lapsed) == ([(1, "work")], [2])


def test_the_withdrawal_of_what_is_not_asked_is_nothing(table: Table) -> None:
    table.ask(1)
    before = list(table.screen.lines)
    table.questions.withdraw("other", "late", table.now)
    assert (table.answers, table.screen.lines) == ([], before)


def test_questions_wait_for_each_other(table: Table) -> None:
    for number in (1, 2, 3):
        table.ask(number, source=f"vm{number}")
    table.arm()
    assert "[60 s, 2 more]" in table.screen.prompts[-1]
    assert table.screen.bells == 1
    assert "vm2 asks to attach a block device" not in table.screen.lines
    for word in ("1", "n", "2"):
        table.type(f"{word}\r")
        table.arm()
    assert table.answers == [(1, "work"), (2, None), (3, "vault")]
    assert table.screen.bells == 3


def test_so_many_questions_and_no_more(table: Table) -> None:
    for number in range(QUESTIONS_MAX):
        table.ask(number)
    with pytest.raises(Full):
        table.ask(QUESTIONS_MAX)


def test_withdrawing_all_answers_each_once_and_leaves_a_desk_that_works(table: Table) -> None:
    table.ask(1)
    table.ask(2)
    table.questions.withdraw_all("the service has gone")
    assert (table.answers, table.lapsed) == ([], [1, 2])
    table.ask(3)
    table.wait(ARMING_AFTER_WITHDRAWAL_S)
    table.type("1\r")
    assert table.answers == [(3, "work")]


# Ending


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 0)])
def test_control_c_and_control_d_end_when_nothing_is_asked(
    table: Table, key: str, status: int
) -> None:
    table.type(f"abc{key}")
    assert table.questions.leaving == status


def test_control_d_ends_also_at_a_question_and_does_not_answer_it(table: Table) -> None:
    table.ask(default="work")
    table.arm()
    table.type("\x04")
    assert (table.questions.leaving, table.answers) == (0, [])


def test_an_interrupt_from_outside_denies_or_ends(table: Table) -> None:
    table.ask(default="work")
    table.questions.interrupt(table.now)
    assert (table.questions.leaving, table.answers) == (None, [(1, None)])
    table.questions.interrupt(table.now)
    assert table.questions.leaving == 130


@pytest.mark.parametrize("how", ["answered", "late", "withdrawn"])
def test_once_ends_after_one_question_however_it_ended(how: str) -> None:
    table = Table(once=True)
    table.ask(1)
    table.ask(2, request="bb")
    table.arm()
    if how == "answered":
        table.type("n\r")
    elif how == "late":
        table.wait(60)
    else:
        table.questions.withdraw(ASK["request"], "gone", table.now)
    assert table.questions.leaving == 0
    assert (table.answers, table.lapsed[:1]) == (
        ([(1, None)], []) if how == "answered" else ([], [1])
    )


def test_a_question_is_shown_again_after_a_stop_and_not_armed(table: Table) -> None:
    table.ask(default="work")
    table.arm()
    table.type("2")
    table.questions.resume(table.now)
    table.type("\r")
    assert table.answers == []
    assert table.screen.lines.count("work asks to attach a block device") == 2
