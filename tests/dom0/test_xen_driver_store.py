"""Decisions about domains and block devices from what xenstore has. No store, no xl."""

from __future__ import annotations

import pytest
from pedos_dom0.drivers.base import DomainInfo
from pedos_dom0.drivers.xen.xenstore import (
    SeenDomain,
    Vbd,
    as_domid,
    changes,
    domain_of,
    picture,
    vbd_number,
    vbd_of,
)


class Tree(dict[str, str]):
    """A xenstore by its values' paths."""

    def read(self, path: str) -> str | None:
        return self.get(path)

    def list(self, path: str) -> list[str]:
        inside = (each[len(path) + 1 :] for each in self if each.startswith(f"{path}/"))
        return list(dict.fromkeys(each.partition("/")[0] for each in inside))


def test_a_domain_has_the_name_that_the_toolstack_gave_it() -> None:
    tree = Tree({"/local/domain/7/name": "work"})
    assert domain_of(tree, 7) == SeenDomain(7, "work")
    assert domain_of(tree, 8) is None


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("32751", 32751), ("32752", None)])
def test_numbers_of_domains_are_bounded(text: str, number: int | None) -> None:
    assert as_domid(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1e3", "x", "٣", "123456"])
def test_what_is_no_number_is_no_domain(text: str) -> None:
    assert as_domid(text) is None


def test_changes_name_each_vm_once() -> None:
    before = picture([SeenDomain(1, "work"), SeenDomain(2, "stray")], (), {"vault": None}, ())
    after = picture([SeenDomain(3, "work")], (), {"vault": None, "new": None}, ["vault"])
    assert changes(before, after) == [
        DomainInfo("stray", None, "Halted"),
        DomainInfo("new", None, "Halted"),
        DomainInfo("vault", None, "Transient"),
        DomainInfo("work", 3, "Running"),
    ]
    assert changes(after, after) == []


@pytest.mark.parametrize(
    ("name", "number"),
    [("xvda", 51712), ("xvdi", 51840), ("xvdp", 51952), ("xvdq", 268439552), ("xvdz", 268441856)],
)
def test_disks_have_the_numbers_of_xen_vbd_interface(name: str, number: int) -> None:
    assert vbd_number(name) == number


def test_a_block_device_is_read_from_the_toolstacks_notes() -> None:
    node = "/libxl/5/device/vbd/51840"
    backend = "/local/domain/2/backend/vbd/5/51840"
    tree = Tree({f"{node}/backend": backend, f"{node}/params": "/dev/sda", f"{node}/script": "/x"})
    assert vbd_of(tree, 5, "xvdi") == Vbd(51840, 2, backend, "/dev/sda", "/x")
    assert vbd_of(tree, 5, "xvdj") is None
    tree[f"{node}/backend"] = "nonsense"
    found = vbd_of(tree, 5, "xvdi")
    assert found is not None
    assert found.backend_domid == -1
