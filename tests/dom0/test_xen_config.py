"""The folders of VMs' configurations: a failed look does not make a VM count as removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.drivers.xen.config import CONFIG_MAX, Configs, own_frontends
from pedos_dom0.policy import following

from tests.dom0.test_xen_driver import host, running, until
from tests.dom0.xen_host import Host
from tests.failing_calls import Failing, each_call_failing

__all__ = ["host"]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[list[Path]]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / f"in-{folder.name}.cfg").touch()
    yield folders


def test_an_error_of_a_folder_is_not_taken_for_no_vms(folders: list[Path]) -> None:
    configs = Configs(folders)
    configs.read()
    assert (sorted(configs.paths), configs.is_complete) == (["in-a", "in-b"], True)
    for failing in each_call_failing(configs.read):
        with failing:
            configs.read()
        assert (sorted(configs.paths), configs.is_complete) == (["in-a", "in-b"], False), failing
    configs.read()
    assert configs.is_complete


def test_a_file_that_cannot_be_looked_at_hides_no_other(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = Configs(folders)
    configs.read()
    (folders[0] / "new.cfg").touch()
    real = os.stat

    def fails(path: Path) -> os.stat_result:
        if path.name == "in-a.cfg":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:  # no longer: pytest looks at files to say what failed
        patch.setattr(os, "stat", fails)
        configs.read()
    assert sorted(configs.paths) == ["in-a", "in-b", "new"]
    assert not configs.is_complete


def test_what_was_never_read_is_not_known(folders: list[Path]) -> None:
    assert not Configs(folders).is_complete
    for failing in each_call_failing(Configs(folders).read):
        configs = Configs(folders)
        with failing:
            configs.read()
        assert not configs.is_complete, failing


def test_a_folder_or_file_that_is_not_there_is_none(folders: list[Path]) -> None:
    a, b = folders
    (a / "link.cfg").symlink_to(a / "nowhere")
    (a / "circle.cfg").symlink_to(a / "circle.cfg")
    (b / "in-b.cfg").unlink()
    b.rmdir()
    configs = Configs(folders)
    configs.read()
    assert (list(configs.paths), configs.is_complete) == (["in-a"], True)


async def test_a_folder_that_could_not_be_read_is_read_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any change in it."""
    monkeypatch.setattr(following, "AGAIN", 0.0)
    host.configure("work")
    real, fails = os.listdir, [True]

    def listdir(path: Path) -> list[str]:
        if path == host.root / "etc" and fails:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    async with running(host) as driver:
        assert not driver.knows_all()
        fails.clear()
        await until(driver, "work", DomainInfo("work", None, "Halted"))
        assert driver.knows_all()


async def test_a_vm_is_known_by_the_uuid_that_its_configuration_gives(host: Host) -> None:
    host.configure("vault")
    config = host.root / "etc" / "work.cfg"
    config.write_text("# uuid = '0-0'\nname='work'\nuuid = \"0-A\" # its own\n")
    async with running(host) as driver:
        assert driver.domains()["vault"].uuid is None
        assert driver.domains()["work"].uuid == "0-a"
        config.write_text("name='work'\nuuid='0-b'\n")
        await until(driver, "work", DomainInfo("work", None, "Halted", "0-b"))
        host.create(3, "work")
        await until(driver, "work", DomainInfo("work", 3, "Running", "0-b"))


WITH_DISKS = "name='in-a'\nuuid='0-a'\ndisk=['phy:/dev/vg/root,xvda,w']\n"


def test_a_configuration_that_cannot_be_read_keeps_the_uuid_that_it_gave(
    folders: list[Path],
) -> None:
    (folders[0] / "in-a.cfg").write_text(WITH_DISKS)
    configs = Configs(folders)
    configs.read()
    for failing in each_call_failing(configs.read):
        with failing:
            configs.read()
        assert (configs.uuids["in-a"], configs.is_complete) == ("0-a", False), failing


def test_a_vm_whose_configuration_was_never_read_is_there_and_not_all_is_known(
    folders: list[Path],
) -> None:
    path = folders[0] / "in-a.cfg"
    path.write_text(WITH_DISKS)
    configs = Configs(folders)
    with Failing(2, errno.EMFILE) as failing:  # after looks at the folder and at the file
        configs.read()
    assert failing.failed == f"open({path})"
    assert (configs.uuids["in-a"], configs.is_complete) == (None, False)
    configs.read()
    assert (configs.uuids["in-a"], configs.is_complete) == ("0-a", True)


def test_the_own_disks_in_a_configuration_that_cannot_be_read_are_an_error(
    folders: list[Path],
) -> None:
    path = folders[0] / "in-a.cfg"
    path.write_text(WITH_DISKS)
    for failing in each_call_failing(lambda: own_frontends(path)):
        with failing, pytest.raises(DriverError, match=r"in-a\.cfg cannot be read: "):
            own_frontends(path)
    with pytest.raises(DriverError, match=r"none\.cfg cannot be read: No such file"):
        own_frontends(folders[0] / "none.cfg")


def test_a_configuration_that_is_too_large_is_an_error_and_never_cut(
    folders: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = folders[0] / "in-a.cfg"
    path.write_text("#" * (CONFIG_MAX - len(WITH_DISKS) - 1) + "\n" + WITH_DISKS)
    configs = Configs(folders)
    configs.read()
    assert (configs.uuids["in-a"], configs.is_complete) == ("0-a", True)
    assert own_frontends(path) == {"xvda"}
    path.write_text("#" + path.read_text())
    for _ in range(2):
        configs.read()
        assert (configs.uuids["in-a"], configs.is_complete) == ("0-a", False)
    (said,) = caplog.messages
    assert f"{path} has more than 256 KiB" in said
    with pytest.raises(DriverError, match="has more than 256 KiB"):
        own_frontends(path)


async def test_own_disks_are_not_known_while_a_folder_cannot_be_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM's configuration may be in it."""
    async with running(host) as driver:
        assert await driver.carriers["block"].own_names("work") == frozenset()
        monkeypatch.setattr(driver._configs, "_unread", {host.root: "why"})
        with pytest.raises(DriverError, match="not all folders of configurations can be read"):
            await driver.carriers["block"].own_names("work")


async def test_a_vm_that_has_become_another_one_since_it_was_looked_at_is_not_started(
    host: Host,
) -> None:
    config = host.root / "etc" / "work.cfg"
    config.write_text("name=\"work\"\nuuid='0-1'\n")
    driver = host.driver()  # which does not run, so that nothing looks again
    driver._configs.read()
    config.write_text("name=\"work\"\nuuid='0-2'\n")
    with pytest.raises(DriverError, match=r"work\.cfg gives another uuid than when the"):
        await driver.start("work")
    assert host.calls("create") == []
    async with running(host) as driver:
        await driver.start("work")
