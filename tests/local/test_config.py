"""pedos.toml: what is accepted, and the error for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.local import config, templates
from pedos_dom0.local.config import CONFIG_MAX, VMS_MAX, ConfigError, VmConfig
from pedos_dom0.local.supervise import RESTARTS

PATH = Path("lab/pedos.toml")


def test_the_template_of_init_is_a_configuration_of_three_vms() -> None:
    read = config.parse(templates.CONFIG, PATH)
    assert read.names == ("sys-usb", "work", "vault")
    assert all(vm.autostart for vm in read.vms)
    assert not read.dom0_verbose


def test_vms_keep_the_order_of_the_file_and_their_keys() -> None:
    text = "[vm.zebra]\nautostart = false\n[vm.ant]\nverbose = true\n[dom0]\nverbose = true\n"
    read = config.parse(text, PATH)
    assert read.vms == (VmConfig("zebra", autostart=False), VmConfig("ant", verbose=True))
    assert read.dom0_verbose
    assert read.restarts == RESTARTS


def test_the_brake_can_be_set() -> None:
    assert config.parse("[machine]\nrestarts = 100\n[vm.work]\n", PATH).restarts == 100


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[vm.work\n", "1:9", "not valid TOML"),
        ("[vm.work]\nautostart = yes\n", "2:13", "not valid TOML"),
        ("[vm.work]\n[vm.work]\n", "2:9", "not valid TOML"),
        ("[vm.work]\nautostart = ", "2", "not valid TOML"),
        ("", None, "no VM is defined"),
        ("[dom0]\n", None, "vm: no VM is defined"),
        ("[vm]\n", "1", "vm: no VM is defined"),
        ("vm = 3\n", "1", "must be a table of VMs, not a number"),
        ("[vms.work]\n", "1", 'only "machine", "dom0" and "vm" are known here'),
        (
            "[machine]\nrestart = 1\n[vm.a]\n",
            "2",
            "machine.restart: unknown key; known here: restarts",
        ),
        ("[machine]\nrestarts = true\n[vm.a]\n", "2", "from 0 to 1000, not the value true"),
        ("[machine]\nrestarts = -1\n[vm.a]\n", "2", "from 0 to 1000, not -1"),
        ("[machine]\nrestarts = 1001\n[vm.a]\n", "2", "from 0 to 1000, not 1001"),
        ("colour = 'red'\n[vm.work]\n", "1", "colour: unknown key"),
        ("[vm.work]\n\nautostrat = true\n", "3", "vm.work.autostrat: unknown key; known here: au"),
        ("[vm.a]\n[vm.work]\nautostart = 'no'\n", "3", "must be true or false (without quotes)"),
        ("[vm.work]\nautostart = 1\n", "2", "must be true or false (without quotes), not a number"),
        ("[vm.a]\n[vm]\nwork = true\n", "3", "vm.work: must be a table, not the value true"),
        ("vm.work.autostart = []\n", "1", "not a list"),
        ("[dom0]\nautostart = true\n[vm.a]\n", "2", "dom0.autostart: unknown key"),
        ("dom0 = 1\n[vm.a]\n", "1", "dom0: must be a table, not a number; write [dom0]"),
        ("[vm.a]\n[vm.dom0]\n", "2", "dom0 is always there"),
        ("[vm.a]\n[vm.'9lives']\n", "2", "9lives"),
        ("[vm.a]\n[vm.'../etc']\n", "2", "../etc"),
        ('[vm.a]\n[vm."a\\u001b[31m"]\n', "2", "\\x1b"),
    ],
)
def test_a_mistake_says_file_line_key_and_what_is_right(
    text: str, place: str | None, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, PATH)
    message = str(caught.value)
    assert message.startswith(f"{PATH}:{place}: " if place else f"{PATH}: ")
    assert words in message
    assert "\x1b" not in message


def test_too_many_vms_are_refused() -> None:
    text = "".join(f"[vm.a{number}]\n" for number in range(VMS_MAX + 1))
    with pytest.raises(ConfigError, match=f"at most {VMS_MAX}"):
        config.parse(text, PATH)


def test_what_is_not_text_or_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pedos.toml"
    path.write_bytes(b"[vm.work]\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"toml:2: is not UTF-8"):
        config.load(path)
    path.write_bytes(b"#" * (CONFIG_MAX + 1))
    with pytest.raises(ConfigError, match="at most"):
        config.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(path)
