"""Programs and manual pages of one Debian package, from the entry points in pyproject.toml.

usage: programs.py PACKAGE ROOT       (ROOT is the folder that becomes the package)
       programs.py --manual FOLDER    (the manual pages of the command line alone)

A launcher (tools/launcher.in) runs isolated (python3 -IS): what a user has in the environment or in
the current folder cannot get into a program that has root's authority over devices. It also starts
faster than setuptools' own, which looks the entry point up when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

#: Which Debian package has which Python package.
DEBIAN_PACKAGES = {
    "pedos_protocol": "pedos-common",
    "pedos_host": "pedos-common",
    "pedos_vchan": "pedos-common",
    "pedos_cli": "pedos-common",
    "pedos_call": "pedos-common",
    "pedos_agent": "pedos-agent",
    "pedos_keeper": "pedos-agent",
    "pedos_dom0": "pedos-dom0",
    "pedos_widget": "pedos-widget",
}
#: Started by systemd and not by people: sbin, and section 8 of the manual.
DAEMONS = {"pedos-agent", "pedos-dom0", "pedos-run"}
#: In the manual of each command; a test compares it with the protocol's.
EXIT_STATUS = """\
  0    done
  1    failed
  2    the command line, or the request, is malformed
  3    denied by policy
  4    not found
  5    the service cannot be reached
  6    busy
  130  interrupted (Ctrl-C)
  141  nothing reads the output any more"""
#: The same of the command that ends as what it calls does.
CALLED_STATUS = """\
  that of the command, or service, and
  125  something went wrong, also with the command line, which the message says
  126  refused by the policy, or by dom0's user
  127  the VM has no such service
  128 and more: a signal ended the command"""
CALLING = {"pedos_cli.qvm_run"}
#: What the modules call the function that makes their parser.
PARSER_MAKERS = ("build_parser", "make_parser", "_parser")

COMPLETIONS = PROJECT / "cli/completions"
#: The file that completes all programs, by shell.
COMPLETION_FILES = {"bash": "qvm-device.bash", "zsh": "_qvm-device", "fish": "qvm-device.fish"}
#: These look for a file of each program's name, in this folder: links lead to the one.
LINKED = {
    "bash": "usr/share/bash-completion/completions/{name}",
    "fish": "usr/share/fish/vendor_completions.d/{name}.fish",
}
#: The program after which the one file is called.
FIRST = "qvm-device"
LAUNCHER = PROJECT / "tools/launcher.in"
SHEBANG = "#!/usr/bin/env -S --block-signal=INT /usr/bin/python3 -IS"
#: Where Debian's Python packages are, which without site (-S) nothing else says.
PYTHON_PATH = ["/usr/lib/python3/dist-packages"]


def programs_of(package: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, function) of each program that belongs to a Debian package."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    entries = {name: entry.split(":") for name, entry in project["scripts"].items()}
    return {
        name: (module, function)
        for name, (module, function) in entries.items()
        if DEBIAN_PACKAGES[module.split(".")[0]] == package
    }


def completed_programs(shell: str) -> set[str]:
    """The programs that the file for a shell completes."""
    text = (COMPLETIONS / COMPLETION_FILES[shell]).read_text()
    text = re.sub(r"^#(?!compdef).*\n", "", text, flags=re.MULTILINE)
    return set(re.findall(r"\bqvm-[a-z-]+", text))


def manual_page(module: str, section: int) -> str:
    """The page made of the parser in `module`."""
    from build_manpages.manpage import Manpage  # noqa: PLC0415 - tests need not have it

    parser = parser_in(module)
    summary, _, _ = (parser.description or "").partition(". ")
    parser.man_short_description = summary.rstrip(".")
    parser._manpage = manual_sections(parser, module)
    parser.epilog = None  # it is in these
    _, _, text = str(Manpage(parser)).partition("\n")  # without its .TH, which is always section 1
    return f'.TH {parser.prog.upper()} {section} "" "PedOS devices" "PedOS devices"\n{text}'


def parser_in(module: str) -> argparse.ArgumentParser:
    """The parser of the program in `module`."""
    found = importlib.import_module(module)
    make = next(getattr(found, name) for name in PARSER_MAKERS if hasattr(found, name))
    parser: argparse.ArgumentParser = make()
    return parser


def manual_sections(parser: argparse.ArgumentParser, module: str) -> list[dict[str, str]]:
    """What a page has behind the options: the examples of the program and of all its actions, and
    what its exit status says."""
    found: dict[str, dict[str, None]] = {}  # heading -> texts, each once
    for each in parsers_of(parser):
        if each.epilog:
            heading, colon, rest = each.epilog.partition(":\n")
            if not colon:
                heading, rest = "examples", each.epilog
            found.setdefault(heading, {})[rest] = None
    if module.startswith(("pedos_cli.", "pedos_widget.qvm_")):
        found["exit status"] = {CALLED_STATUS if module in CALLING else EXIT_STATUS: None}
    return [{"heading": heading, "content": "\n\n".join(texts)} for heading, texts in found.items()]


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser, and those of its actions; an action with an alias once."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for leaf in dict.fromkeys(action.choices.values()):
                yield from parsers_of(leaf)


def write_manual(folder: Path) -> None:
    """Writes the pages of the command line into a folder, for who works on this project."""
    folder.mkdir(parents=True, exist_ok=True)
    pages: dict[str, str] = {}
    for name, (module, _) in programs_of("pedos-common").items():
        write_page(folder / f"{name}.1", module, pages)


def write_page(page: Path, module: str, pages: dict[str, str]) -> None:
    """Writes one page. `pages` has the names of those that exist, by module: qvm-block and its kind
    are qvm-device with a word said already."""
    section = int(page.suffix[1:])
    if module in pages:
        page.write_text(f".so man{section}/{pages[module]}\n")
    else:
        page.write_text(manual_page(module, section))
        pages[module] = page.name


def main() -> None:
    """Writes into ROOT what PACKAGE has."""
    package, root = sys.argv[1], Path(sys.argv[2])
    if package == "--manual":
        write_manual(root)
        return
    programs = programs_of(package)
    pages: dict[str, str] = {}  # module -> the page that was made of it
    for name, (module, function) in programs.items():
        section, folder = (8, "usr/sbin") if name in DAEMONS else (1, "usr/bin")
        launcher = root / folder / name
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(
            LAUNCHER.read_text().format(
                shebang=SHEBANG, path=PYTHON_PATH, module=module, function=function
            )
        )
        launcher.chmod(0o755)
        page = root / f"usr/share/man/man{section}/{name}.{section}"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, module, pages)
        for shell, place in LINKED.items():
            if name in completed_programs(shell) and name != FIRST:
                link = root / place.format(name=name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(place.format(name=FIRST)).name)


if __name__ == "__main__":
    main()
