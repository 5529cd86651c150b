"""The check of a USB/IP stream, for a pump (csrc/usbip.h says what it accepts)."""

from __future__ import annotations

from ._native import ffi, lib

TRANSFER_MAX = lib.PV_USBIP_TRANSFER_MAX  # bytes
BYTES_MAX = lib.PV_USBIP_BYTES_MAX  # of all transfers under way
COMMANDS_MAX = lib.PV_USBIP_COMMANDS_MAX  # without a return
LATE_MAX = lib.PV_USBIP_LATE_MAX  # transfers that may return after their unlinking did
PACKETS_MAX = lib.PV_USBIP_PACKETS_MAX  # of one isochronous transfer


class RefusedError(Exception):
    """The stream is not what a kernel sends; the text says why."""


class UsbipCheck:
    """Both directions of one attachment's stream, on one side of it.

    `devid` is what the source's kernel calls the device. In the source the commands come from the
    channel, in the target the returns. The same object must see both directions, each from its
    first byte on.
    """

    def __init__(self, devid: int, *, is_source: bool) -> None:
        native = lib.pv_usbip_new(devid, is_source)
        if not native:
            raise MemoryError
        self.native = ffi.gc(native, lib.pv_usbip_free)

    @property
    def why(self) -> str:
        """Why it refused; "" if it did not."""
        return str(ffi.string(lib.pv_usbip_why(self.native)).decode())

    @property
    def outstanding(self) -> int:
        """How many commands have no return yet."""
        return int(lib.pv_usbip_outstanding(self.native))

    def commands(self, content: bytearray) -> int:
        """How many of the next bytes from target to source may go on, after changes to them that
        the check makes; RefusedError."""
        return self._look(lib.pv_usbip_commands, content)

    def returns(self, content: bytearray) -> int:
        """How many of the next bytes from source to target may go on, without those that the check
        takes out of `content`; RefusedError."""
        return self._look(lib.pv_usbip_returns, content)

    def _look(self, look: object, content: bytearray) -> int:
        assert callable(look)
        with ffi.from_buffer("uint8_t[]", content) as bytes_:
            cleared = look(self.native, bytes_, len(content))
        if cleared == lib.PV_REFUSED:
            raise RefusedError(self.why)
        if dropped := lib.pv_usbip_dropped(self.native):
            del content[-dropped:]
        return int(cleared)
