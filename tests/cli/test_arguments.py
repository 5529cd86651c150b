"""Errors of a command line are found before any service is asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_cli import qvm_device, qvm_ls, qvm_policy, qvm_shutdown, qvm_sleep, qvm_start
from pedos_cli.arguments import Parser, verbosity

PROGRAMS = {
    "qvm-device": qvm_device.main,
    "qvm-block": qvm_device.main_block,
    "qvm-usb": qvm_device.main_usb,
    "qvm-pci": qvm_device.main_pci,
    "qvm-mic": qvm_device.main_mic,
    "qvm-ls": qvm_ls.main,
    "qvm-start": qvm_start.main,
    "qvm-shutdown": qvm_shutdown.main,
    "qvm-sleep": qvm_sleep.main,
    "qvm-policy": qvm_policy.main,
}
PARSERS = {
    "qvm-ls": qvm_ls.build_parser,
    "qvm-start": qvm_start.build_parser,
    "qvm-shutdown": qvm_shutdown.build_parser,
    "qvm-sleep": qvm_sleep.build_parser,
}

WRONG = {
    "": "no device class is given",
    "-v": "no device class is given",
    "floppy": "'floppy' is no device class: the classes are block, usb, pci, mic",
    "blocks list": "'blocks' is no device class",
    "list block": "'list' is no device class",
    "block work": "'work' is no action",
    "block lst": "'lst' is no action",
    "block LIST": "'LIST' is no action",
    "block list --exclude work": "--exclude requires --all",
    "block --exclude work": "--exclude requires --all",
    "block list --exclude": "expected at least one argument",
    "block list --all work": "--all already means every VM",
    "block list 9work": "'9work' is not a VM name",
    "block list --all --exclude 9work": "'9work' is not a VM name",
    "block list --al": "unrecognized arguments: --al",
    "block --frobnicate": "unrecognized arguments: --frobnicate",
    "block attach": "the following arguments are required: VM, SOURCE:ID[:IDENTITY]",
    "block attach work": "the following arguments are required: SOURCE:ID[:IDENTITY]",
    "block attach work stick.img": "'stick.img' is not a device: SOURCE:ID is meant",
    "block attach work sys-usb:": "'' is not a device id",
    "block attach work :sda": "'' is not a VM name",
    "block attach work a:b:": "'' is not an identity: 1 to 256 letters",
    "block attach work a:b:c/d": "'c/d' is not an identity",
    "block attach work a:*": "'*' is no device that can be attached",
    "block attach work a:*:c": "'*' is no device that can be attached",
    "block detach work a:b:c/d": "'c/d' is not an identity",
    "block detach work a:*": "'*' is no device that can be detached",
    "block attach work ../x:sda": "'../x' is not a VM name",
    "block attach sys-usb:sda work": "the VM comes first",
    "block attach work sys-usb:sda vault": "unrecognized arguments: vault",
    "block attach work sys-usb:sda -o": "expected one argument",
    "block attach work sys-usb:sda -o read-only": "option 'read-only' has no value",
    "block attach work sys-usb:sda -o =yes": "'' is not an option's name",
    "block attach work sys-usb:sda -o read-only=": "cannot have the value ''",
    "block attach work sys-usb:sda -o Read=yes": "'Read' is not an option's name",
    "block attach work sys-usb:sda -o a=1 -o b=2 --option a=3": "option 'a' is given twice",
    "block attach work sys-usb:sda --ro -o read-only=no": "--ro contradicts -o read-only=no",
    "block attach work sys-usb:sda --ro -o read-only=No": "--ro contradicts -o read-only=No",
    "block attach work sys-usb:sda --pers": "unrecognized arguments: --pers",
    "block attach work sys-usb:sda " + " ".join(f"-o x{i}=y" for i in range(17)): "17 options",
    "block list " + " ".join(f"vm{i}" for i in range(300)): "300 VMs are named",
    "block detach": "the following arguments are required: VM",
    "block detach work sda": "'sda' is not a device",
    "block explain work sys-usb:sda --verb eat": "invalid choice: 'eat'",
    "block assign": "the following arguments are required: VM, SOURCE:ID[:IDENTITY]",
    "block assign sys-usb:sda work": "the VM comes first",
    "block assign work sda": "'sda' is not a device: SOURCE:ID is meant",
    "block assign work a:*": "a:* is every device: its id is meant, as list names it, or a:*:IDENT",
    "block assign work a:*:*": "a:* is every device",
    "block assign work a:* --device": "a:* is every device",
    "block assign work a:*:c --port": "--port contradicts a:*:c, which is at any port",
    "block assign work a:b:* --device": "--device contradicts a:b:*, which is any device there",
    "block assign work a:b --port --device": "argument --device/--only-device: not allowed with",
    "block assign work a:b --ask -r": "argument -r/--required: not allowed with argument --ask",
    "block assign work a:b --ro -o read-only=no": "--ro contradicts -o read-only=no",
    "block assign work a:b -p": "unrecognized arguments: -p",
    "block unassign": "the following arguments are required: VM",
    "block unassign work a:*": "a:* is every device",
    "block unassign work a:*:c --port": "--port contradicts a:*:c",
    "block list -s --exclude work": "--exclude requires --all",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_refused_without_asking_anybody(
    line: str, no_service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qvm_device.main(line.split(" ") if line else []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("qvm-device: usage: ")
    assert WRONG[line] in first
    assert second.startswith("  try:  qvm-device ")


def test_a_vm_without_an_action_leads_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_device.main(["usb", "work"]) == 2
    assert "  try:  qvm-device usb list work\n" in capsys.readouterr().err
    assert qvm_device.main_usb(["work"]) == 2
    assert "  try:  qvm-usb list work\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["qvm-start", "qvm-shutdown", "qvm-start 1", "qvm-ls a.b", "qvm-policy", "qvm-policy statu"],
)
def test_the_other_programs_refuse_wrong_command_lines_too(
    line: str, no_service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prog, *argv = line.split()
    assert PROGRAMS[prog](argv) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{prog}: usage: ")
    assert second.startswith(f"  try:  {prog} ")


@pytest.mark.parametrize("bad", ["\x1b[31mred", "a\nb", "\u202egnp", "\udcff", "x" * 10_000, "é:ß"])
@pytest.mark.parametrize(
    "before",
    [
        [],
        ["block"],
        ["block", "list"],
        ["block", "attach", "work"],
        ["block", "attach", "work", "sys-usb:sda", "-o"],
        ["block", "list", "--all", "--exclude"],
        ["block", "explain", "work", "sys-usb:sda", "--verb"],
    ],
)
def test_bad_text_in_a_command_line_is_shown_escaped_and_cut(
    before: list[str], bad: str, no_service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qvm_device.main([*before, bad]) == 2
    err = capsys.readouterr().err
    assert all(" " <= char <= "~" or char == "\n" or char.isalnum() for char in err)
    assert len(err.splitlines()) == 2
    assert len(err) < 2500


@pytest.mark.parametrize(
    "line",
    [
        "-v -v -q block list",
        "-vv block -q list",
        "-v block -v list -q",
        "block list -vvq",
        "block -v list -q -v",
        "-v block -q -v",
        "block --verbose list --verbose --quiet",
    ],
)
def test_global_options_count_wherever_they_stand(line: str) -> None:
    args = qvm_device.parse(line.split())
    assert args.action == "list"
    assert verbosity(args) == 1


@pytest.mark.parametrize(
    "line",
    [
        "-h",
        "--help",
        "-h block attach",
        "-vh",
        "block -h",
        "block -vh",
        "block --help attach",
        "block list -h",
        "block attach --help",
        "block d -v -h",
        "block explain work -h",
    ],
)
def test_help_is_shown_wherever_it_is_asked_for(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qvm_device.main(line.split()) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: qvm-device ")
    assert "examples:" in out
    assert err == ""


@pytest.mark.parametrize("prog", PROGRAMS)
def test_every_program_has_help(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS[prog](["--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {prog} ")


@pytest.mark.parametrize(
    ("action", "names"),
    [
        ("list", ["list", "ls", "l"]),
        ("attach", ["attach", "at", "a"]),
        ("detach", ["detach", "dt", "d"]),
        ("assign", ["assign", "s"]),
        ("unassign", ["unassign", "u"]),
    ],
)
def test_actions_have_the_aliases_of_the_manual(action: str, names: list[str]) -> None:
    rest = [] if action == "list" else ["work", "sys-usb:sda"]
    assert {qvm_device.parse(["block", name, *rest]).action for name in names} == {action}


@pytest.mark.parametrize(
    "line",
    ["block", "block --all", "block --json", "block --all --exclude a b", "-q block", "block -v"],
)
def test_list_is_implied(line: str) -> None:
    assert qvm_device.parse(line.split()).action == "list"


@pytest.mark.parametrize("line", ["--json ls", "--all -v --json list", "-q --json l"])
def test_flags_may_stand_before_the_action(line: str) -> None:
    args = qvm_device.parse(["block", *line.split()])
    assert (args.action, args.json, args.vms) == ("list", True, [])
    assert qvm_device.parse(["block", "--ro", "attach", "work", "sys-usb:sda"]).read_only
    assert qvm_device.parse(["block", "--json", "work"]).vms == ["work"]
    assign = qvm_device.parse(["usb", "--dry-run", "--ask", "assign", "work", "sys-usb:1-2"])
    assert (assign.mode, assign.dry_run) == ("ask", True)
    assert qvm_device.parse(["usb", "-s"]).assignments
    # It is what a VM is called, where a name has to stand.
    assert qvm_device.parse(["block", "--all", "--exclude", "list"]).exclude == ["list"]


@pytest.mark.parametrize(
    "line",
    [
        "work sys-usb:sda --ro -o a=1 -p",
        "--ro work -o a=1 -p sys-usb:sda",
        "-p work --ro sys-usb:sda -oa=1",
        "--option=a=1 --ro --persistent -- work sys-usb:sda",
    ],
)
def test_options_may_stand_between_the_arguments(line: str) -> None:
    args = qvm_device.parse(["block", "attach", *line.split()])
    assert (args.vm, args.device) == ("work", "sys-usb:sda")
    assert (args.read_only, args.options, args.persistent) == (True, ["a=1"], True)


def test_an_option_before_the_device_does_not_turn_detach_into_detach_all() -> None:
    assert (
        qvm_device.parse(["block", "detach", "work", "-v", "sys-usb:sda"]).device == "sys-usb:sda"
    )


def test_vm_names_may_stand_around_options() -> None:
    assert qvm_device.parse(["block", "list", "work", "--json", "vault"]).vms == ["work", "vault"]


def parsers() -> Iterator[tuple[str, Parser]]:
    yield "qvm-policy", qvm_policy.build_parser()
    for prog, build in PARSERS.items():
        yield prog, build()
    for device_class in (None, "block", "usb", "pci", "mic"):
        yield f"qvm-{device_class or 'device'}", qvm_device.build_parser(device_class)


def leaves(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for leaf in action.choices.values():
                yield from leaves(leaf)


def test_every_example_in_every_help_is_a_right_command_line() -> None:
    tried = 0
    for _, top in parsers():
        for parser in leaves(top):
            assert parser.epilog is not None
            lines = parser.epilog.splitlines()
            examples = [line for line in lines if line.startswith("  ") and line[2] != " "]
            assert examples
            for example in examples:
                prog, *argv = shlex.split(example)
                if prog in PARSERS:
                    PARSERS[prog]().parse_args(argv)
                elif prog == "qvm-policy":
                    qvm_policy.parse(argv)
                else:
                    named = None if prog == "qvm-device" else prog.removeprefix("qvm-")
                    qvm_device.parse(argv, named)
                tried += 1
    assert tried > 50


def test_no_help_shows_the_name_of_an_empty_value() -> None:
    for _, top in parsers():
        for parser in leaves(top):
            assert "None" not in parser.format_help()


def test_a_description_is_wrapped_and_examples_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    example = "example " * 10
    Parser(prog="p", description="word " * 30, epilog=f"examples:\n  {example}").print_help()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("word")] == [
        " ".join(["word"] * count) for count in (11, 11, 8)
    ]
    assert f"  {example}" in lines
