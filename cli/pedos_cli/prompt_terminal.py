"""The terminal of the questions: its settings, its input, and a prompt line.

This program, not the kernel, reads keys one by one and echoes them: keys from before a question
counts must not appear on the screen, and Ctrl-C has to arrive in its place among the other keys.
This module writes only printable ASCII, the letters that the terminal has, and control characters
that it adds itself.
"""

from __future__ import annotations

import errno
import os
import signal
import termios

from pedos_cli.output import escaped, in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

READ_SIZE = 4096
"""Bytes to read at once: the most that the kernel's line discipline holds."""

WIDTH_UNKNOWN = 80
"""Columns of a terminal that does not tell."""

_IFLAG, _LFLAG, _CC = 0, 3, 6  # indices in what tcgetattr returns


class Terminal:
    """Takes over a terminal between `with` and its end, whatever happens between."""

    def __init__(self, input_fd: int, output_fd: int, encoding: str) -> None:
        """OSError or termios.error later, if these are no terminal."""
        self.encoding = encoding
        self._input = input_fd
        self._output = output_fd
        self._before: list[int | list[bytes | int]] | None = None
        self._prompt = ""

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._input)
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        # Changing the terminal from the background stops the process that does it.
        handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN) if _is_main_thread() else None
        try:
            self._end_prompt()
            # Unread input is discarded: it was meant for a question, not for a shell.
            termios.tcsetattr(self._input, termios.TCSAFLUSH, self._before)
        except (OSError, termios.error):
            pass  # it was hung up: there is nothing to restore
        finally:
            self._before = None
            if handler is not None:
                signal.signal(signal.SIGTTOU, handler)

    def take(self) -> None:
        """Set the terminal as it is needed here, and discard earlier input.

        Also needed after this process was stopped, because the shell restores its own settings
        meanwhile.
        """
        settings = termios.tcgetattr(self._input)
        _clear(settings, _LFLAG, termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        _clear(settings, _IFLAG, termios.IXON)  # Ctrl-S would stop the countdown
        characters = settings[_CC]
        assert isinstance(characters, list)
        characters[termios.VMIN], characters[termios.VTIME] = 0, 0  # reading never waits
        termios.tcsetattr(self._input, termios.TCSAFLUSH, settings)

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return self._input

    def read(self) -> bytes:
        """Return the keys that were typed; nothing if there are none, or if the terminal has
        gone."""
        try:
            return os.read(self._input, READ_SIZE)
        except OSError as error:
            if error.errno == errno.EIO:  # hung up; poll says so
                return b""
            raise

    def flush_input(self) -> None:
        """Discard keys that were typed and not read yet."""
        termios.tcflush(self._input, termios.TCIFLUSH)

    @property
    def width(self) -> int:
        """The terminal's columns now."""
        try:
            return os.get_terminal_size(self._output).columns or WIDTH_UNKNOWN
        except OSError:
            return WIDTH_UNKNOWN

    def line(self, text: str) -> None:
        """Write a line, made harmless; the prompt stays below it."""
        self._end_prompt()
        self._write(in_order(escaped(text, encoding=self.encoding)) + "\n")

    def prompt(self, text: str) -> None:
        """Write the last line of the screen again, made harmless and cut to the terminal's width.

        It uses a carriage return and blanks, which every terminal knows, and ASCII, in which a
        character is a column.
        """
        text = escaped(text, max(1, self.width - 1), "ascii")
        blanks = " " * max(0, len(self._prompt) - len(text))
        self._write("\r" + text + blanks + "\b" * len(blanks))
        self._prompt = text

    def bell(self) -> None:
        """Ring, or whatever the terminal does instead."""
        self._write("\a")

    def _end_prompt(self) -> None:
        if self._prompt:
            self._prompt = ""
            self._write("\n")

    def _write(self, text: str) -> None:
        data = text.encode(self.encoding)
        while data:
            data = data[os.write(self._output, data) :]


def _clear(settings: list[int | list[bytes | int]], place: int, flags: int) -> None:
    value = settings[place]
    assert isinstance(value, int)
    settings[place] = value & ~flags


def _is_main_thread() -> bool:
    import threading  # noqa: PLC0415  (only main threads may set handlers)

    return threading.current_thread() is threading.main_thread()
