"""The unit files: their programs exist, and they match the documentation."""

from __future__ import annotations

import argparse
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from pedos_agent.__main__ import _parser as agent_parser
from pedos_cli import place
from pedos_cli.qvm_sleep import build_parser as sleep_parser
from pedos_cli.timeouts import SUSPEND_S
from pedos_dom0.__main__ import make_parser as dom0_parser
from pedos_keeper.__main__ import _parser as keeper_parser
from pedos_keeper.keeper import STOP_SECONDS
from pedos_protocol.sockets import CALL_SOCKETS, DEFAULT_SOCKET, DESKTOP_GROUP, DESKTOP_SOCKET

from .debian_files import DEBIAN, PROJECT, UNITS, load_programs, settings

programs = load_programs()
AGENTS = ("pedos-agent", "pedos-dom0-agent")
# From here on a unit file is its sandbox.
SANDBOX_BEGINS = "CapabilityBoundingSet"


def command(unit: str) -> list[str]:
    [line] = settings(unit)["ExecStart"]
    return shlex.split(line)


def option(unit: str, name: str) -> list[str]:
    words = command(unit)
    return [words[at + 1] for at, word in enumerate(words) if word == name]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_daemon_with_options_that_it_has(unit: str) -> None:
    program, *words = command(unit)
    name = program.removeprefix("/usr/sbin/")
    assert name in programs.DAEMONS
    parser = dom0_parser() if name == "pedos-dom0" else agent_parser()
    assert {word for word in words if word.startswith("-")} <= options_of(parser)
    assert option(unit, "--driver") == ["xen"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_told_when_it_is_ready_and_starts_again_what_ends_itself(unit: str) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    # A pause is no hang: see pedos_vchan.running, which watches instead.
    assert "WatchdogSec" not in found
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("unit", UNITS)
def test_it_is_up_before_anybody_logs_in(unit: str) -> None:
    assert "systemd-user-sessions.service" in " ".join(settings(unit)["Before"]).split()
    assert settings(unit)["WantedBy"] == ["multi-user.target"]


@pytest.mark.parametrize("unit", ["pedos-agent", "pedos-dom0"])
def test_the_command_line_finds_its_socket(unit: str) -> None:
    assert option(unit, "--socket") == [DEFAULT_SOCKET]
    assert settings(unit)["RuntimeDirectory"][0].split()[0] == "pedos"


def test_a_user_of_the_desktop_finds_a_socket_in_a_folder_of_its_own() -> None:
    assert option("pedos-dom0", "--desktop-socket") == [DESKTOP_SOCKET]
    assert Path(DESKTOP_SOCKET).parent != Path(DEFAULT_SOCKET).parent
    # The group is the one that the package makes, and it puts nobody into it.
    assert option("pedos-dom0", "--desktop-group") == []
    script = (DEBIAN / "pedos-dom0.postinst").read_text()
    assert f"addgroup --quiet --system {DESKTOP_GROUP}\n" in script
    assert "adduser " not in script


def test_dom0s_service_finds_its_agent() -> None:
    assert option("pedos-dom0", "--dom0-agent") == option("pedos-dom0-agent", "--control-socket")
    # Two programs, two folders: systemd removes that of the one that ends.
    assert settings("pedos-dom0-agent")["RuntimeDirectory"] == ["pedos-agent"]


def test_dom0s_service_reads_the_policy_that_the_package_brings() -> None:
    assert option("pedos-dom0", "--policy") == ["/run/pedos/policy.d", "/etc/pedos/policy.d"]
    assert option("pedos-dom0", "--vms-dir") == ["/etc/pedos/vms.d"]
    assert option("pedos-dom0", "--state") == ["/var/lib/pedos"]
    assert option("pedos-dom0", "--state")[0] + "/audit.jsonl" == place.DEFAULT_AUDIT
    assert settings("pedos-dom0")["StateDirectory"] == ["pedos"]


def test_policy_for_this_boot_outlives_the_service() -> None:
    found = settings("pedos-dom0")
    assert "pedos/policy.d" in found["RuntimeDirectory"][0].split()
    assert found["RuntimeDirectoryPreserve"] == ["yes"]


def test_a_restart_of_the_service_leaves_vms_and_the_agent_alone() -> None:
    # xl's own processes for its VMs are in the service's control group.
    assert settings("pedos-dom0")["KillMode"] == ["process"]
    bound = {"BindsTo", "PartOf", "Requires", "Requisite", "PropagatesStopTo", "Upholds"}
    assert not any(bound & settings(unit).keys() for unit in UNITS)


def test_each_machine_runs_the_agent_that_is_meant_for_it() -> None:
    assert settings("pedos-agent")["ConditionVirtualization"] == ["xen"]
    for unit in ("pedos-dom0", "pedos-dom0-agent"):
        assert settings(unit)["ConditionVirtualization"] == ["!xen"]
        assert settings(unit)["ConditionPathExists"] == ["/sys/hypervisor/type"]


def test_both_agents_have_one_sandbox() -> None:
    guest, dom0 = (UNITS[unit].read_text().partition(SANDBOX_BEGINS)[2] for unit in AGENTS)
    assert guest == dom0 != ""


def test_an_upgrade_restarts_the_service_and_no_agent() -> None:
    rules = (DEBIAN / "rules").read_text().replace("\\\n", " ")
    lines = [line.split() for line in rules.splitlines()]
    calls = [words for words in lines if words[:1] == ["dh_installsystemd"]]
    left_alone = ["--no-stop-on-upgrade", "--no-restart-after-upgrade"]
    assert calls == [
        ["dh_installsystemd", "-ppedos-dom0"],
        ["dh_installsystemd", "-ppedos-dom0", "--name=pedos-dom0-agent", *left_alone],
        ["dh_installsystemd", "-ppedos-dom0", "--name=pedos-dom0-sleep", "--no-start"],
        ["dh_installsystemd", "-ppedos-agent", *left_alone],
        ["dh_installsystemd", "-ppedos-agent", "--name=pedos-devd", *left_alone],
        [
            *("dh_installsystemd", "-ppedos-agent", "--name=pedos-run@"),
            *("--no-enable", "--no-start", *left_alone),
        ],
    ]
    exempt = (DEBIAN / "pedos-agent.needrestart.conf").read_text()
    assert all(f"^{unit}\\.service$" in exempt for unit in AGENTS)
    assert r"qr(^pedos-run\@.*\.service$)} = 0;" in exempt  # it would end the services that run


def sleep_command(key: str) -> Namespace:
    [line] = settings("pedos-dom0-sleep")[key]
    dash, (program, *words) = line[:1], shlex.split(line[1:])
    assert (dash, program) == ("-", "/usr/bin/qvm-sleep")  # a failure is none of the unit
    return sleep_parser().parse_args(words)


def seconds(key: str) -> int:
    [text] = settings("pedos-dom0-sleep")[key]
    return int(text.removesuffix("s"))


def test_the_sleep_waits_for_the_detach_and_not_for_ever() -> None:
    found = settings("pedos-dom0-sleep")
    assert found["Before"] == found["WantedBy"] == ["sleep.target"]  # wanted, and not required
    assert found["Type"] == ["oneshot"]
    assert sleep_command("ExecStart").when == "suspend"
    assert sleep_command("ExecStart").seconds == SUSPEND_S
    # Had systemd to end it, it would count as failed, and nothing would be attached again.
    assert sleep_command("ExecStart").seconds < seconds("TimeoutStartSec")


def test_what_was_detached_is_attached_when_the_machine_is_awake() -> None:
    found = settings("pedos-dom0-sleep")
    assert found["RemainAfterExit"] == found["StopWhenUnneeded"] == ["yes"]
    assert sleep_command("ExecStop").when == "resume"
    assert sleep_command("ExecStop").seconds < seconds("TimeoutStopSec")
    assert found["ConditionPathExists"] == settings("pedos-dom0")["ConditionPathExists"]


def test_people_have_pedos_sound_in_their_session_and_accounts_of_the_system_do_not() -> None:
    found = settings("pedos-sound")
    assert found["ConditionUser"] == ["!@system"]
    assert found["WantedBy"] == ["default.target"]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]


def test_pedos_sound_starts_after_a_sound_server_and_needs_none() -> None:
    found = settings("pedos-sound")
    assert {"pipewire.service", "pulseaudio.service"} <= set(found["After"][0].split())
    assert not {"BindsTo", "PartOf", "Requires", "Requisite", "Wants"} & found.keys()


def test_pedos_sound_finds_the_socket_of_the_agent_beside_it() -> None:
    # A VM may have dom0's packages, for local mode: so it looks for both.
    assert settings("pedos-sound")["ExecStart"] == ["/usr/bin/pedos-sound"]
    sockets = [path for unit in AGENTS for path in option(unit, "--sound-socket")]
    text = (PROJECT / "native/sound/agent.c").read_text()
    quoted = ", ".join(f'"{path}"' for path in sockets)
    assert f"USUAL[] = {{{quoted}}};" in text
    # Users pass through the folder of dom0's agent, and see nothing else in it.
    assert settings("pedos-dom0-agent")["RuntimeDirectoryMode"] == ["0711"]


def test_a_keeper_is_started_by_a_call_as_the_user_whose_name_its_socket_has() -> None:
    [path] = settings("pedos-run.socket")["ListenSequentialPacket"]
    assert path == "/run/pedos-run/%i.sock"
    # The agent's folder goes with each restart of the agent.
    assert not any(
        path.startswith(f"/run/{folder}/")
        for unit in AGENTS
        for folder in settings(unit)["RuntimeDirectory"]
    )
    assert settings("pedos-run.socket")["SocketMode"] == ["0600"]
    assert settings("pedos-run")["User"] == ["%i"]
    program, *words = command("pedos-run")
    assert program == "/usr/sbin/pedos-run"
    assert {word for word in words if word.startswith("-")} <= options_of(keeper_parser())
    assert option("pedos-run", "--user") == ["%i"]


def test_no_number_of_ends_stops_a_keepers_socket_and_none_is_tried_without_a_call() -> None:
    assert settings("pedos-run")["StartLimitIntervalSec"] == ["0"]
    assert settings("pedos-run.socket")["TriggerLimitIntervalSec"] == ["0"]
    assert settings("pedos-run.socket")["FlushPending"] == ["yes"]
    assert "Restart" not in settings("pedos-run")


def test_a_keepers_services_are_in_its_control_group_and_end_with_it() -> None:
    found = settings("pedos-run")
    assert (found["KillMode"], found["Delegate"]) == (["mixed"], ["yes"])
    assert float(found["TimeoutStopSec"][0].removesuffix("s")) > STOP_SECONDS
    [name] = found["PAMName"]
    lines = (DEBIAN / f"pedos-agent.{name}.pam").read_text().splitlines()
    modules = [line.split()[2] for line in lines if line and not line.startswith("#")]
    assert "pam_env.so" in modules
    # It would move the keeper into a session, out of its unit.
    assert "pam_systemd.so" not in modules


def test_a_keeper_counts_as_started_at_once() -> None:
    """With "exec" and PAM systemd 252 waits for ever, and so ends it after 90 seconds."""
    assert "PAMName" in settings("pedos-run")
    assert settings("pedos-run")["Type"] == ["simple"]


def test_programs_that_call_find_the_socket_of_the_agent() -> None:
    sockets = [path for unit in AGENTS for path in option(unit, "--call-socket")]
    text = (PROJECT / "native/call/agent.c").read_text()
    quoted = ", ".join(f'"{path}"' for path in sockets)
    assert f"USUAL[] = {{{quoted}}};" in text
    assert f'#define USUAL_SERVICE "{DEFAULT_SOCKET}"' in text
    assert list(CALL_SOCKETS) == sockets
