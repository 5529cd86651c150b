"""The options of pedos-dom0: which ones each driver needs or refuses."""

from __future__ import annotations

import pytest
from pedos_dom0.__main__ import check, make_parser

COMMON = ["--socket=s", "--dom0-agent=a", "--state=d", "--policy=p", "--vms-dir=v"]


@pytest.mark.parametrize(
    "words",
    [
        ["--driver=xen"],
        ["--driver=xen", "--config-dir=/etc/xen", "--config-dir=/srv/vms", "--xl=/opt/xen/xl"],
        ["--driver=local", "--machine=m", "--vchan=c"],
        ["--driver=xen", "--desktop-socket=d", "--desktop-group=g"],
        ["--driver=xen", "--desktop-socket=d"],
    ],
)
def test_options_that_go_together(words: list[str]) -> None:
    parser = make_parser()
    check(parser, parser.parse_args([*COMMON, *words]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--driver=local"], "--driver local needs --machine and --vchan"),
        (["--driver=local", "--machine=m"], "--driver local needs --vchan"),
        (["--driver=xen", "--machine=m"], "--machine: only for --driver local"),
        (
            ["--driver=local", "--machine=m", "--vchan=c", "--config-dir=d"],
            "--config-dir: only for --driver xen",
        ),
        (["--driver=xen", "--desktop-group=g"], "of no use without --desktop-socket"),
        (["--driver=qemu"], "invalid choice: 'qemu'"),
    ],
)
def test_options_that_do_not(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = make_parser()
    with pytest.raises(SystemExit) as caught:
        check(parser, parser.parse_args([*COMMON, *words]))
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
