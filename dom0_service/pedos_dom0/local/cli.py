"""`pedos-local`: runs the whole system on one Linux machine, with processes as VMs.

    pedos-local init [--sound] DIR            makes a folder with three VMs and a policy
    pedos-local up [--widget] DIR             runs it until Ctrl-C (two, if a VM uses a device)
    pedos-local run DIR [--vm VM] [--] COMMAND...   runs COMMAND in it, as seen from dom0 or VM
    pedos-local shell DIR VM                  an interactive shell, as seen from VM

Exit status: 0 done, 1 failed, 2 usage, 5 it cannot start; `run` and `shell` return COMMAND's own.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from pedos_host.arguments import Parser
from pedos_protocol import VERSION

PROGRAM = "pedos-local"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be unable to encode a file's name
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    # Importing trio takes half of the start-up time; --help and usage errors do without.
    from pedos_dom0.local import verbs  # noqa: PLC0415

    try:
        return verbs.VERBS[options.verb](options)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, with `command` (a list) for `run`. Exits with 2 on a usage error."""
    head, command = split_command(arguments)
    options = make_parser().parse_args(head)
    if not options.dir:
        make_parser().error(f"{options.verb}: DIR is empty; the folder here is called .")
    options.command = command
    if options.verb == "run" and not command:
        make_parser().error(
            f"run: no COMMAND; for example: {PROGRAM} run {options.dir} -- qvm-device block list"
        )
    return options


def split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits `[-v] run [--vm VM] DIR [--vm VM] [--] COMMAND...` before COMMAND.

    argparse.REMAINDER does not work here: it would swallow a --vm after DIR, and look for our own
    options among COMMAND's. So the first word after DIR that is not an option of ours starts
    COMMAND, and the rest is not parsed; nor is anything after "--".
    """
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb != "run":
        return arguments, []
    start = arguments.index("run") + 1
    directory_seen = False
    index = start
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            if directory_seen:
                return arguments[:index], arguments[index + 1 :]
        elif word.startswith("-") and word != "-":
            if word == "--vm":
                index += 1
        elif directory_seen:
            return arguments[:index], arguments[index:]
        else:
            directory_seen = True
        index += 1
    return arguments, []


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Try out PedOS devices on one Linux machine, with processes as VMs. For\n"
        "development, tests and learning: these VMs are no security boundary.",
        epilog="a first look:\n"
        "  pedos-local init lab\n"
        "  cp stick.img lab/vms/sys-usb/devices/block/\n"
        "  pedos-local run lab -- qvm-device block list",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(
        name: str,
        summary: str,
        usage: str | None = None,
        folder: str = "the folder that `init` made",
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, usage=usage
        )
        verb.add_argument("dir", metavar="DIR", help=folder)
        return verb

    init = add(
        "init", "make DIR: pedos.toml, a policy, and a folder for each VM", folder="the new folder"
    )
    init.add_argument(
        "--sound",
        action="store_true",
        help="with sound servers for sys-usb and work, and a microphone to lend; on a desktop also "
        "with the real one, in dom0",
    )
    up = add("up", "start the whole system and keep it up until Ctrl-C")
    up.add_argument(
        "--widget",
        action="store_true",
        help="with the widget in the tray of this desktop, for the devices of DIR",
    )
    run = add(
        "run",
        "start the whole system, run COMMAND, stop the system; or use a running `up`",
        usage=f"{PROGRAM} run [-h] [-v] DIR [--vm VM] [--] COMMAND...",
    )
    run.add_argument(
        "--vm", metavar="VM", default="dom0", help="run COMMAND as seen from VM (default: dom0)"
    )
    shell = add("shell", "an interactive shell as seen from VM, in the folder of VM")
    shell.add_argument("vm", metavar="VM", help="a VM of pedos.toml, or dom0")
    for verb in (up, run, shell):
        verb.add_argument(
            "-v", "--verbose", action="store_true", help="more in DIR/log and on the terminal"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
