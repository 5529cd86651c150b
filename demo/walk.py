"""`make demo`: a disk of one VM attached to another, and a service of one called by another, under
policy, with real processes and files.

usage: demo/run [IMAGE]        IMAGE, a disk image of yours, is copied and never written

Ends with "demo: ok", or with status 1 at the first unexpected result.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import image
from stage import Difference, Stage, expect, expect_in, expect_not_in, explain, sha256, show

DISK = "sys-usb:stick.img"


def prepare(stage: Stage, users_image: Path | None) -> None:
    if users_image is None:
        explain("A disk: an ext4 file system with this project's own files in it.")
        print("$ mke2fs -t ext4 -d FILES stick.img 64M", flush=True)
        image.make(stage.unplugged, stage.folder / "files")
    else:
        explain(f"A disk: a copy of {users_image}. The original is only read.")
        print("$ cp IMAGE stick.img", flush=True)
        image.copy(users_image, stage.unplugged)
    show(f"{stage.unplugged.stat().st_size} bytes, sha256 {sha256(stage.unplugged)}")

    explain("Make a machine of processes on this computer: pedos.toml names dom0 and the VMs.")
    stage.command("pedos-local", "init", "lab")
    explain("Add one more VM to sys-usb, work and vault.")
    print("$ echo '[vm.personal]' >> lab/pedos.toml", flush=True)
    with (stage.lab / "pedos.toml").open("a") as config:
        config.write("\n[vm.personal]\n")
    explain("Start dom0's service and one agent for each VM, each a process of its own.")
    stage.up()


def attach_and_read(stage: Stage) -> None:
    explain("Plug the disk into sys-usb: in local mode, put a file into the folder of its devices.")
    stage.plug()
    expect_in("the list", DISK, stage.block("list"))

    explain("Attach it to work. When the command returns, it is done.")
    expect_in("what attach says", DISK, stage.block("attach", "work", DISK))
    listing = stage.block("list")
    expect_in("the list", "work (attached: frontend-dev=xvdi", listing)

    explain("work itself sees its disk too, and nothing else.")
    seen = stage.command("pedos-local", "run", "lab", "--vm", "work", "--", "qvm-block", "list")
    expect_in("what work sees", DISK, seen)

    explain("In work it is a block file. Is it byte for byte the disk in sys-usb?")
    source, target = sha256(stage.plugged), sha256(stage.block_file("work"))
    for digest, path in ((source, stage.plugged), (target, stage.block_file("work"))):
        show(f"{digest}  {stage.short(str(path))}")
    expect("sha256 of the disk as work sees it", source, target)
    expect(
        "size of the disk as work sees it",
        stage.plugged.stat().st_size,
        stage.block_file("work").stat().st_size,
    )


def files(stage: Stage) -> None:
    if not image.is_ext(stage.plugged):
        explain("This image is no clean ext2/3/4 file system: the demo skips the steps with files.")
        return
    disk = stage.block_file("work")
    path = image.find_file(stage.plugged)
    if path is None:
        explain("There is no file on this disk: the demo skips reading one.")
    else:
        explain("Read a file through the file system on the block file in work.")
        stage.command("debugfs", "-R", f'dump "{path}" seen-by-work', disk)
        reference = stage.quietly(
            "debugfs", "-R", f'dump "{path}" in-the-source', str(stage.plugged)
        )
        expect("reading the file at its source", 0, reference.status)
        seen = stage.folder / "seen-by-work"
        show(f"{path}: {seen.stat().st_size} bytes, sha256 {sha256(seen)}")
        expect(f"{path} as work reads it", sha256(stage.folder / "in-the-source"), sha256(seen))
        original = stage.folder / "files" / path.lstrip("/")
        if original.exists():
            expect(f"{path} as it was before", sha256(original), sha256(seen))

    explain("work writes a file to the disk; it is in the source's image at once.")
    letter = f"written by work at {time.strftime('%H:%M:%S')}\n"
    (stage.folder / "letter").write_text(letter)
    stage.command("debugfs", "-w", "-R", "write letter letter-from-work", disk)
    read = stage.command("debugfs", "-R", "cat /letter-from-work", stage.plugged)
    expect_in("the letter in the source's image", letter.strip(), read)
    expect("sha256 of both after writing", sha256(stage.plugged), sha256(disk))


def refusals(stage: Stage) -> None:
    explain("A disk in two VMs at once would be destroyed: a second attach is refused as busy.")
    said = stage.block("attach", "personal", DISK, status=6)
    expect_in("the refusal", "attached to work", said)
    expect("a block file in personal", False, stage.block_file("personal").exists())

    explain("The same attach again changes nothing and says so.")
    stage.block("attach", "work", DISK)

    explain("The policy denies every attach to vault; the refusal names the rule.")
    said = stage.block("attach", "vault", DISK, status=3)
    expect_in("the refusal", "denied", said)
    expect_in("the rule", "50-local.policy:", said)
    expect("a block file in vault", False, stage.block_file("vault").exists())


def detach(stage: Stage) -> None:
    explain("Detach it.")
    stage.block("detach", "work", DISK)
    expect("a block file in work", False, stage.block_file("work").exists())
    expect_not_in("the list", "attached", stage.block("list"))


def assignment(stage: Stage) -> None:
    explain("Assign it with --persistent, so that work gets it at each start.")
    stage.block("attach", "--persistent", "work", DISK)
    expect_in("the list", "*work (attached", stage.block("list"))

    explain("Shut work down and unplug the disk: work cannot start without it.")
    stage.command("qvm-shutdown", "work")
    expect_in("the list", "*work (assigned", stage.block("list"))
    stage.unplug()
    said = stage.command("qvm-start", "work", status=1)
    expect_in("the reason", DISK, said)

    explain("Plugged in again, work starts, and the disk is there.")
    stage.plug()
    expect_in("what starting says", "work", stage.command("qvm-start", "work"))
    expect("sha256 in work", sha256(stage.plugged), sha256(stage.block_file("work")))


def surprise(stage: Stage) -> None:
    explain("Unplug the disk while it is attached: it disappears in work as well.")
    stage.unplug()
    stage.until("the block file in work goes away", lambda: not stage.block_file("work").exists())
    expect_not_in("the list", "attached", stage.block("list"))

    explain("It is still assigned. Detach everything that work has; then nothing is left.")
    stage.block("detach", "work")
    expect_not_in("the list", "stick.img", stage.block("list"))


def call(stage: Stage) -> None:
    explain("VMs also call services of each other. A program in vault's services.d is a service.")
    service = stage.lab / "vms" / "vault" / "services.d" / "app.Digest"
    stage.write(service, "#!/bin/sh\nexec sha256sum\n")
    service.chmod(0o755)
    letter = "a letter\n"
    stage.write(stage.folder / "letter", letter)

    explain("No rule lets work call it. All that work learns is the number of its request.")
    in_work = ("pedos-local", "run", "lab", "--vm", "work", "--")
    calling = (*in_work, "sh", "-c", 'qvm-call vault app.Digest <"$0"', stage.folder / "letter")
    said = stage.command(*calling, status=126)
    request = re.search(r"request: ([0-9a-f]{12})", said)
    expect("a request id in the refusal", True, request is not None)
    assert request is not None
    story = stage.command("qvm-audit", "show", request.group(1))
    expect_in("what dom0's user reads", "denied it", story)

    explain("With a rule, work's letter is read in vault, and the answer comes back.")
    stage.write(stage.lab / "policy.d" / "30-user.policy", "app.Digest  *  work  vault  allow\n")
    asked = ("qvm-policy", "explain", "app.Digest", "+", "work", "vault")
    stage.until("the rule is in force", lambda: "allow" in stage.quietly(*asked).text)
    answer = stage.command(*calling)
    expect_in("the answer", hashlib.sha256(letter.encode()).hexdigest(), answer)
    last = ("qvm-audit", "tail", "-n", "1")
    stage.until("its end is in the audit log", lambda: "call_ended" in stage.quietly(*last).text)
    stage.command(*last)


def end(stage: Stage) -> None:
    explain("End the machine: no process, no mount and no socket may be left.")
    stage.down()


def walk(stage: Stage, users_image: Path | None) -> None:
    prepare(stage, users_image)
    for step in (attach_and_read, files, refusals, detach, assignment, surprise, call, end):
        step(stage)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print(__doc__, file=sys.stderr)
        return 2
    users_image = Path(arguments[0]).absolute() if arguments and arguments[0] else None
    if users_image is not None and not (users_image.is_file() and os.access(users_image, os.R_OK)):
        print(f"demo: {users_image} is not a file that can be read", file=sys.stderr)
        return 2
    if users_image is not None and users_image.stat().st_size == 0:
        print(f"demo: {users_image} is empty, so there is nothing to attach", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    stage = Stage(Path(tempfile.mkdtemp(prefix="pedos-demo-")).resolve())
    try:
        walk(stage, users_image)
    except Difference as difference:
        print(f"\ndemo: FAILED: {difference}", flush=True)
        print(stage.logs(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    finally:
        stage.clean_up()
    print("\ndemo: ok", flush=True)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
