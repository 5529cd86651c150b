"""A graph asks for each rule about a request that the rule is about."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pedos_cli.policy_witness import witness
from pedos_cli.qvm_policy import main
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_protocol.kinds import open_part

from tests.policy import random_policies

Captured = pytest.CaptureFixture[str]
SYSTEM = System({name: VmFacts(name) for name in ("work", "vault")})


@pytest.mark.parametrize(
    ("service", "argument", "found"),
    [
        ("app.Open", "*", "+any"),
        ("app.Open", "+", "+"),
        ("device.attach.block", "+sys-usb:sd*", "+sys-usb:sdany:any"),
        ("device.attach.usb", "*", "+any:any:any:any:any:u770000"),
        ("device.attach.usb", "+*:*:*u03*", "+any:any:any:any:any:u030000"),
        ("device.attach.usb", "+*:*:*:*:*:*u0301*", "+any:any:any:any:any:u030100"),
        ("device.attach.usb", "+a:1-2:1050:*", "+a:1-2:1050:any:any:u770000"),
        ("device.attach.usb", "+a:1-2:046d*", "+a:1-2:046d:any:any:u770000"),
        ("device.attach.usb", "+a:1:1:2:S:u080650", "+a:1:1:2:S:u080650"),
        ("device.attach.usb", "+a:*:only=u08*,u03*", "+a:any:any:any:any:u080000"),
        ("device.attach.usb", "+a:*:1050:*:only=u*", "+a:any:1050:any:any:u770000"),
        ("device.attach.usb", "+a:*:*u-unknown", "+a:any:any:any:any:u-unknown"),
        ("device.attach.usb", "+a:*:only=u-unknown,u08*", "+a:any:any:any:any:u080000"),
        ("device.attach.pci", "+dom0:*:*:*:*:p0c03*", "+dom0:any:any:any:any:p0c0300"),
    ],
)
def test_a_witness_is_a_whole_device_with_the_kinds_that_are_named(
    service: str, argument: str, found: str
) -> None:
    assert witness(service, argument) == found


def test_a_witness_is_matched_by_the_rule_it_stands_for() -> None:
    rnd = random.Random(5)
    known = 0
    for _ in range(400):
        (backend, port, identity) = (rnd.choice(globs) for globs in random_policies.GLOBS)
        argument = f"+{backend}:{port}:{identity}"
        rules, errors = parse_file("a.policy", f"device.attach.usb {argument} * * allow")
        assert errors == []
        asked = witness("device.attach.usb", argument)
        known += open_part("usb", asked.split(":", 2)[2]) is None
        request = Request("device.attach.usb", asked, "dom0", "work")
        # `*:u03*` needs a vendor, a product and a serial number before it, as a device has them.
        assert evaluate(request, Snapshot(rules), SYSTEM).verdict == "allow", argument
    assert known > 300


def test_a_graph_draws_what_only_some_kinds_are_allowed(
    tmp_path: Path, no_service: Path, capsys: Captured
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "30-user.policy").write_text(
        "device.attach.usb +a:*:only=u08* dom0 work allow\n"
        "device.attach.usb +*:*:*u03* dom0 vault ask\n"
        "device.attach.usb * dom0 vault allow\n"
    )
    (tmp_path / "vms.json").write_text(json.dumps({"domains": {"work": {}, "vault": {}}}))
    files = ["--policy-dir", str(tmp_path / "p"), "--system", str(tmp_path / "vms.json")]
    assert main(["graph", "--json", *files]) == 0
    edges = {
        (each["target"], each["verdict"]): each["services"]
        for each in json.loads(capsys.readouterr().out)["edges"]
    }
    assert edges == {
        ("work", "allow"): ["device.attach.usb +a:*:only=u08*"],
        ("vault", "allow"): ["device.attach.usb *"],
        ("vault", "ask"): ["device.attach.usb +*:*:*u03*"],
    }
