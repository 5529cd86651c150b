"""argparse as the services and `pedos-local` use it."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from pedos_protocol.names import escaped_text

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """Prints the help or an error, and never repeats words of the command line unescaped."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stderr:
            super()._print_message(message, file)
            return
        try:
            if file is None:  # Python's value if the program was started with it closed
                raise OSError(errno.EBADF, "standard output is closed")
            file.write(message)
            sys.stdout.flush()
        except OSError as error:
            _abandon_output()
            self.exit(1, f"{self.prog}: {error.strerror}\n")

    def error(self, message: str) -> NoReturn:
        super().error(escaped_text(message))


def _abandon_output() -> None:
    """Discard what is still buffered: Python would try to write it again at exit, and exit with
    120."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
    finally:
        os.close(null)
