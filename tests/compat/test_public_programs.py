"""Programs that were written for qrexec, or the commands that they consist of, call by call."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.calls import configure, serve, shell
from tests.e2e.conftest import Prepare
from tests.e2e.system import BIN, PATIENCE_S, LocalSystem, wait_until

HERE = Path(__file__).parent
CLIENT = "qrexec-client-vm"
RULES = """\
qubes.Filecopy    *      work  vault     allow
qubes.ConnectTCP  *      work  @default  allow target=vault
qubes.ConnectTCP  *      work  vault     allow
qubes.SshAgent    *      work  vault     allow
qubes.Gpg         *      work  vault     allow
qubes.Gpg2        *      work  @default  allow target=vault
qubes.SshSocket   *      work  vault     allow
web.Proxy         *      work  vault     allow
"""
# Once one direction has ended, it gives the other one half a second, if nobody says otherwise.
SOCAT = ("socat", "-t", str(PATIENCE_S))
KEY = "Tests <tests@pedos.example>"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"this needs {program}")


needs_socat, needs_ssh, needs_gpg = needs("socat"), needs("ssh-agent"), needs("gpg")


def python(program: str) -> str:
    return shell(f"exec {sys.executable} {HERE}/{program}")


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    def prepared(system: LocalSystem) -> dict[str, str]:
        folder = system.folder
        (folder / "policy.d" / "10-compat.policy").write_text(RULES)
        serve(folder, "vault", "qubes.Filecopy", python("qfile_unpacker.py"))
        serve(
            folder,
            "vault",
            "qubes.ConnectTCP",
            shell(f'exec {" ".join(SOCAT)} STDIO "TCP:localhost:$1"'),
        )
        # As a link to /dev/tcp has it that is for programs which know of no calls.
        configure(folder, "vault", "qubes.ConnectTCP", "skip-service-descriptor=true\n")
        serve(folder, "vault", "web.Proxy", python("web_proxy.py"))
        # A login has in its environment where agents listen; here they have a place.
        agent = f'exec {" ".join(SOCAT)} - "UNIX-CONNECT:$HOME/ssh-agent"'
        serve(folder, "vault", "qubes.SshAgent", shell(agent))
        serve(
            folder,
            "vault",
            "qubes.Gpg",
            shell('GNUPGHOME="$HOME/gnupg" exec gpg --batch -q --clearsign'),
        )
        extra = f'exec {" ".join(SOCAT)} - "UNIX-CONNECT:$HOME/gnupg/S.gpg-agent.extra"'
        serve(folder, "vault", "qubes.Gpg2", shell(extra))
        return {}

    return prepared


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs find the client by the name that they call it by, as the package has it."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / CLIENT).symlink_to(BIN / "qvm-call")
    return folder


@pytest.fixture
def environment(system: LocalSystem, bin_folder: Path) -> dict[str, str]:
    """That of the programs in work."""
    found = system.environment("work")
    return {**found, "PATH": f"{bin_folder}:{found['PATH']}"}


def run(
    environment: dict[str, str], *words: str | Path, send: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words, env=environment, input=send, capture_output=True, timeout=PATIENCE_S, check=False
    )


def home(system: LocalSystem, vm: str) -> Path:
    return system.folder / "vms" / vm / "home"


# Files


def copy(environment: dict[str, str], *files: Path) -> subprocess.CompletedProcess[bytes]:
    """As qvm-copy does it."""
    agent = (sys.executable, HERE / "qfile_agent.py")
    return run(environment, CLIENT, "vault", "qubes.Filecopy", *agent, *files)


def test_files_are_copied_and_their_sender_hears_that_they_arrived(
    system: LocalSystem, environment: dict[str, str], tmp_path: Path
) -> None:
    sizes = {"empty": 0, "small": 7, "large": 3_000_001}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    done = copy(environment, *(tmp_path / name for name in sizes))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"sent 3 files\n", b"")
    incoming = home(system, "vault") / "QubesIncoming" / "work"
    for name in sizes:
        assert (incoming / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_move_that_failed_does_not_look_like_one_that_succeeded(
    system: LocalSystem, environment: dict[str, str], tmp_path: Path
) -> None:
    """The receiver answers and ends while the sender still writes: whoever moves deletes on 0."""
    there = home(system, "vault") / "QubesIncoming" / "work" / "twice"
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(b"older")
    (tmp_path / "twice").write_bytes(os.urandom(2_000_000))
    done = copy(environment, tmp_path / "twice")
    assert done.returncode == 1
    assert b"twice: File exists" in done.stderr
    assert there.read_bytes() == b"older"


def test_a_receiver_that_is_not_there_is_no_success_of_the_sender(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    agent = (sys.executable, HERE / "qfile_agent.py")
    done = run(environment, CLIENT, "vault", "qubes.Nothing", *agent, tmp_path / "file")
    assert done.returncode not in (0, 1), done.stderr


# TCP


@pytest.fixture
def page() -> bytes:
    return b"a page\n" * 50_000


@pytest.fixture
def web(tmp_path: Path, page: bytes) -> Iterator[int]:
    """A web server, as vault has it: its port."""
    (tmp_path / "page").write_bytes(page)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def listening(environment: dict[str, str], address: str, command: str) -> Iterator[str]:
    """socat, whose every connection is a process of `command`; where it listens."""
    listener = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *SOCAT, "-d", "-d", address, f"EXEC:{command}"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with listener:
        try:
            assert listener.stderr is not None
            for line in listener.stderr:
                if "listening on" in line:
                    yield line.rpartition(" ")[2].strip()
                    return
            raise AssertionError(f"socat does not listen at {address}")
        finally:
            listener.kill()


def fetched(environment: dict[str, str], *target: str) -> bytes:
    """The page, by a client that closes its half once it has asked."""
    command = f"{CLIENT} {' '.join(target)}"
    with listening(environment, "TCP-LISTEN:0,bind=127.0.0.1,fork", command) as local:
        port = int(local.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
            connection.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@needs_socat
def test_a_port_of_another_vm_is_reached_by_a_service_that_is_socat(
    environment: dict[str, str], web: int, page: bytes
) -> None:
    assert fetched(environment, "@default", f"qubes.ConnectTCP+{web}").endswith(page)


@needs_socat
def test_a_port_of_another_vm_is_reached_by_a_service_that_is_a_link(
    system: LocalSystem, environment: dict[str, str], web: int, page: bytes
) -> None:
    link = system.folder / "vms" / "vault" / "services.d" / f"qubes.ConnectTCP+{web}"
    link.symlink_to(f"/dev/tcp/127.0.0.1/{web}")
    try:
        assert fetched(environment, "vault", f"qubes.ConnectTCP+{web}").endswith(page)
    finally:
        link.unlink()


# Agents for secrets


@pytest.fixture
def ssh_agent(system: LocalSystem) -> Iterator[Path]:
    """vault's agent for SSH, with one key."""
    path = home(system, "vault") / "ssh-agent"
    key = home(system, "vault") / "key"
    agent = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", "ssh-agent", "-D", "-a", path],
        stdout=subprocess.DEVNULL,
    )
    with agent:
        try:
            wait_until(path.exists, "the agent listens")
            made = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "a key of vault",
                "-f",
                key,
            ]
            subprocess.run(made, check=True)
            vaults = {**os.environ, "SSH_AUTH_SOCK": str(path)}
            subprocess.run(["ssh-add", "-q", key], env=vaults, check=True)
            yield path
        finally:
            agent.kill()
    path.unlink(missing_ok=True)
    key.unlink()


@needs_socat
@needs_ssh
@pytest.mark.parametrize("as_socket", [False, True])
def test_keys_of_another_vms_ssh_agent_sign_and_stay_there(
    system: LocalSystem,
    environment: dict[str, str],
    ssh_agent: Path,
    tmp_path: Path,
    as_socket: bool,
) -> None:
    """With socat as the service, and with the agent's socket itself."""
    service = "qubes.SshAgent"
    if as_socket:
        service = "qubes.SshSocket"
        link = system.folder / "vms" / "vault" / "services.d" / service
        link.unlink(missing_ok=True)
        link.symlink_to(ssh_agent)
        configure(system.folder, "vault", service, "skip-service-descriptor=true\n")
    mine = tmp_path / "agent"
    with listening(environment, f"UNIX-LISTEN:{mine},fork", f"{CLIENT} vault {service}"):
        works = {**environment, "SSH_AUTH_SOCK": str(mine)}
        listed = run(works, "ssh-add", "-L")
        assert b"a key of vault" in listed.stdout, listed.stderr
        public = tmp_path / "key.pub"
        public.write_bytes(listed.stdout)
        (tmp_path / "text").write_text("signed in vault")
        signing = ("ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", public, tmp_path / "text")
        signed = run(works, *signing)
        assert signed.returncode == 0, signed.stderr
    checked = run(
        environment,
        *("ssh-keygen", "-q", "-Y", "check-novalidate", "-n", "file"),
        *("-s", tmp_path / "text.sig"),
        send=b"signed in vault",
    )
    assert checked.returncode == 0, checked.stderr


@pytest.fixture(scope="module")
def gpg_home() -> Iterator[Path]:
    """A secret key, and its agent. Its path is short enough for the sockets of gpg-agent."""
    with tempfile.TemporaryDirectory(prefix="pedos-gpg-") as folder:
        made = ["gpg", "--batch", "-q", "--passphrase", "", "--quick-generate-key", KEY, "ed25519"]
        there = {**os.environ, "GNUPGHOME": folder}
        subprocess.run(made, env=there, check=True, stderr=subprocess.DEVNULL)
        yield Path(folder)
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=there, check=True)


@pytest.fixture
def gnupg(system: LocalSystem, gpg_home: Path) -> Path:
    """vault's."""
    link = home(system, "vault") / "gnupg"
    if not link.is_symlink():
        link.symlink_to(gpg_home)
    return gpg_home


@pytest.fixture
def public_only(gnupg: Path) -> Iterator[dict[str, str]]:
    """work's, which has the public key alone."""
    exported = run({**os.environ, "GNUPGHOME": str(gnupg)}, "gpg", "--batch", "-q", "--export")
    with tempfile.TemporaryDirectory(prefix="pedos-gpg-") as folder:
        mine = {"GNUPGHOME": folder}
        importing = ("gpg", "--batch", "-q", "--no-autostart", "--import")
        run({**os.environ, **mine}, *importing, send=exported.stdout)
        yield mine


@needs_gpg
def test_gpg_of_another_vm_reads_to_the_end_and_then_answers(
    environment: dict[str, str], public_only: dict[str, str]
) -> None:
    signed = run(environment, CLIENT, "vault", "qubes.Gpg", send=b"a letter\n" * 1000)
    assert signed.returncode == 0, signed.stderr
    checked = run({**environment, **public_only}, "gpg", "--batch", "--verify", send=signed.stdout)
    assert checked.returncode == 0, checked.stderr


@needs_gpg
@needs_socat
def test_gpg_works_with_the_agent_of_another_vm(
    environment: dict[str, str], public_only: dict[str, str]
) -> None:
    """gpg in work finds a socket where it looks for its agent, and each connection is a call."""
    mine = {**environment, **public_only}
    place = f"UNIX-LISTEN:{public_only['GNUPGHOME']}/S.gpg-agent,fork"
    with listening(mine, place, f"{CLIENT} @default qubes.Gpg2"):
        signing = ("gpg", "--batch", "-q", "--no-autostart", "--clearsign")
        signed = run(mine, *signing, send=b"a letter\n")
        assert signed.returncode == 0, signed.stderr
    assert run(mine, "gpg", "--batch", "--verify", send=signed.stdout).returncode == 0


# Both outputs


@pytest.mark.parametrize(("blocks", "padding"), [(1, 0), (3000, 0), (10, 500_000)])
def test_a_proxy_answers_on_output_and_error_both(
    environment: dict[str, str], blocks: int, padding: int
) -> None:
    asked = {"method": "GET", "blocks": blocks, "block_size": 1000, "padding": padding}
    done = run(environment, CLIENT, "vault", "web.Proxy", send=json.dumps(asked).encode())
    body = b"".join(bytes([number % 251]) * 1000 for number in range(blocks))
    assert (done.returncode, done.stdout) == (0, body)
    told = json.loads(done.stderr)
    assert (told["length"], len(told["padding"])) == (len(body), padding)


def test_a_proxy_says_no_by_its_status_and_its_error(environment: dict[str, str]) -> None:
    done = run(environment, CLIENT, "vault", "web.Proxy", send=b'{"method": "POST"}')
    assert (done.returncode, done.stdout) == (1, b"")
    assert json.loads(done.stderr) == {"error": "only GET"}
