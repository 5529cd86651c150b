"""What the system refuses an agent becomes a sentence for dom0's user, and is no bug."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
from pedos_agent.attachments.table import Attachments, explain
from pedos_agent.connections.control import _in_words
from pedos_agent.device_classes import data_channel
from pedos_agent.device_classes.block.exporter import opened_source
from pedos_agent.inventory.local_device import Inode, LocalDevice
from pedos_agent.system.revision import Revision
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError
from pedos_protocol.messages import Device

from .conftest import ATTACHMENT, Pair, make_settings, needs_fuse

FOLDER_IS_GONE = (
    r"the folder \S+/work/dev, in which borrowed disks appear, is gone; make it again, or restart "
    "the VM$"
)


@pytest.mark.parametrize("frontend", [None, "xvdi"])
@pytest.mark.parametrize("instead", ["nothing", "file"])
async def test_a_folder_that_is_gone_is_told_in_words(
    tmp_path: Path, frontend: str | None, instead: str
) -> None:
    settings = make_settings(tmp_path, "work", 3)
    settings.dev.rmdir()
    if instead == "file":
        settings.dev.touch()
    attachments = Attachments(settings, Revision())
    params = ImportStart(ATTACHMENT, "block", "x.img", 2, 7, False, "sys-usb", frontend)
    with pytest.raises(CallError, match=FOLDER_IS_GONE) as caught:
        await attachments.start_import(params)
    assert caught.value.code == "failed"
    assert attachments.imports() == []


@needs_fuse
async def test_a_folder_that_goes_while_a_disk_is_attached_is_told_in_words_too(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = pair.target.settings.dev

    async def reach(point: str) -> None:
        if point == "import.connected":
            dev.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr(data_channel, "reach", reach)
        with pytest.raises(CallError, match=FOLDER_IS_GONE):
            await pair.attach()
    dev.mkdir()  # which is a way out
    await pair.detach()
    await pair.attach()


async def test_what_the_system_refuses_is_an_answer_with_its_words() -> None:
    async def handler(_peer: Any, _params: dict[str, Any]) -> dict[str, Any]:
        raise OSError(24, "Too many open files", "/lab/vms/work/dev")

    with pytest.raises(CallError, match="Too many open files: /lab/vms/work/dev") as caught:
        await _in_words(handler)(cast(Any, None), {})
    assert caught.value.code == "failed"


async def test_a_device_that_may_not_be_opened_is_named_as_the_user_knows_it(
    tmp_path: Path,
) -> None:
    image = tmp_path / "stick.img"
    image.touch()
    device = Device("block", "stick.img", "", "a disk", 0, None, False, None)
    found = LocalDevice(device, str(image), Inode.of(os.stat(image)))
    with pytest.raises(PermissionError) as caught:
        async with opened_source(found) as source:
            # As for a user who does not own the file; a test may run as root, who may open every
            # file.
            raise PermissionError(13, "Permission denied", f"/proc/self/fd/{source}")
    assert explain(caught.value).message == "Permission denied: stick.img"
