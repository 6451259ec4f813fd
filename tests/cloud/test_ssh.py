"""Commands on a real ssh server: the right key, the right machine, output as it comes, its exit status."""

import contextlib
import io
import shlex
import sys
import threading
import time

import asyncssh
import pytest

from cloudreg.cloud.ssh import run_on_server
from cloudreg.errors import CommandFailedError, InputError, ServerUnreachableError
from ssh_server import KEY_TYPES, OpenSsh, SshServer, free_port


@pytest.fixture
def call(ssh_server, keys):
    """Run a command there; return what it printed and what `run_on_server` returned."""

    def run(command, key="ed25519", **options):
        out, err = io.StringIO(), io.StringIO()
        options = {"port": ssh_server.port, "patience_s": 0, "out": out, "err": err, **options}
        errors = run_on_server(command, str(keys[key]), "127.0.0.1", **options)
        return out.getvalue(), err.getvalue(), errors

    return run


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_keys_of_every_type_open_the_door(call, kind):
    assert call("echo hello; echo oops >&2", key=kind) == ("hello\n", "oops\n", "oops\n")


def test_output_goes_to_ours_by_default(ssh_server, keys, capsys):
    returned = run_on_server("echo hello; echo oops >&2", keys["rsa"], "127.0.0.1", port=ssh_server.port)
    printed = capsys.readouterr()
    assert (printed.out, printed.err, returned) == ("hello\n", "oops\n", "oops\n")


def test_the_remote_exit_status_is_ours(call):
    with pytest.raises(CommandFailedError, match=r"on 127.0.0.1 ended with exit status 3: no such tile$") as caught:
        call("echo reading >&2; echo no such tile >&2; exit 3")
    assert caught.value.exit_code == 3


def test_a_command_killed_by_a_signal_is_128_and_its_number(call):
    with pytest.raises(CommandFailedError, match="exit status 137") as caught:
        call("kill -KILL $$")
    assert caught.value.exit_code == 137


def test_output_arrives_while_the_command_runs(call, tmp_path):
    """The command waits for a file that appears only when its first words were seen, without an end of line."""
    gate = tmp_path / "gate"

    class Opens(io.StringIO):
        def write(self, text):
            gate.touch()
            return super().write(text)

    sink = Opens()
    call(f"printf first; until test -e {gate}; do sleep 0.05; done; echo ' second'", out=sink)
    assert sink.getvalue() == "first second\n"


def test_large_output_on_both_streams_comes_whole(call):
    script = "import sys\nfor i in range(20000): print('o' * 50); print('e' * 50, file=sys.stderr)"
    out, err, errors = call(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}")
    assert out == ("o" * 50 + "\n") * 20000 and err == ("e" * 50 + "\n") * 20000
    assert err.endswith(errors) and len(errors) == 65536


def test_text_that_is_no_utf8_does_not_stop_it(call):
    assert call("printf 'a\\377b'")[0] == "a�b"


def test_a_key_that_the_machine_does_not_know_is_refused(home, keys, tmp_path):
    (tmp_path / "nobody").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    strict = SshServer(tmp_path / "nobody")
    try:
        with pytest.raises(InputError, match=r"the key .*ed25519 is refused by ubuntu@127.0.0.1"):
            run_on_server("true", keys["ed25519"], "127.0.0.1", port=strict.port, patience_s=0)
    finally:
        strict.stop()


def test_unreadable_keys_are_told_apart(call, keys, tmp_path):
    with pytest.raises(InputError, match=r"expected a private ssh key at /nowhere/key.pem, got no file"):
        run_on_server("true", "/nowhere/key.pem", "127.0.0.1")
    keys["text"] = tmp_path / "text"
    keys["text"].write_text("hello")
    keys["locked"] = tmp_path / "locked"
    keys["locked"].write_bytes(asyncssh.generate_private_key("ssh-rsa").export_private_key("pkcs8-pem", "secret"))
    try:
        with pytest.raises(InputError, match=r"expected a private ssh key at .*text, got something else"):
            call("true", key="text")
        with pytest.raises(InputError, match="has a passphrase: add it to your agent"):
            call("true", key="locked")
    finally:
        del keys["text"], keys["locked"]


def test_a_new_machine_is_remembered_and_known_from_then_on(call, ssh_server, home):
    call("true")
    file = home / ".ssh" / "known_hosts"
    assert file.read_text().split() == ssh_server.known_hosts_line.split()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert call("echo again", new_host="refuse")[0] == "again\n"
    assert len(file.read_text().splitlines()) == 1


def test_what_was_in_the_file_stays(call, ssh_server, tmp_path):
    file = tmp_path / "known"
    file.write_text("# mine")
    call("true", known_hosts=file)
    assert file.read_text().splitlines() == ["# mine", ssh_server.known_hosts_line.strip()]


def test_a_new_machine_is_refused_where_that_is_asked(call, ssh_server, home):
    with pytest.raises(InputError, match="is a new machine") as caught:
        call("touch was-here", new_host="refuse")
    assert ssh_server.fingerprint in str(caught.value)
    assert not (home / ".ssh").exists() and not ssh_server.commands


@pytest.mark.parametrize("other", KEY_TYPES.values())
@pytest.mark.parametrize("new_host", ["accept", "refuse"])
def test_a_machine_with_another_key_is_never_trusted(call, ssh_server, keys, home, other, new_host):
    stranger = SshServer(keys["rsa"].with_name("allowed"), host_key=other)
    stranger.stop()
    file = home / ".ssh" / "known_hosts"
    file.parent.mkdir()
    line = stranger.known_hosts_line.replace(str(stranger.port), str(ssh_server.port))
    file.write_text(line)
    with pytest.raises(InputError, match=r"host key of 127.0.0.1 has changed: .*ssh-keygen -f .* -R") as caught:
        call("touch was-here", new_host=new_host)
    assert stranger.fingerprint in str(caught.value)
    assert file.read_text() == line and not ssh_server.commands


def test_a_machine_is_remembered_by_name_whatever_its_address(call, ssh_server, home):
    """The address had another machine before, as those of EC2 have."""
    file = home / ".ssh" / "known_hosts"
    file.parent.mkdir()
    earlier = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode()
    file.write_text(f"127.0.0.1 {earlier}[127.0.0.1]:{ssh_server.port} {earlier}")
    call("true", name="i-0123")
    assert file.read_text().splitlines()[-1].startswith("i-0123 ssh-ed25519 ")
    call("true", name="i-0123", new_host="refuse")
    with pytest.raises(InputError, match="has changed"):
        call("true")


def test_a_broken_known_hosts_file_is_named(call, home):
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text("garbage\n")
    with pytest.raises(InputError, match=r"could not read the known hosts of .*known_hosts: .*garbage"):
        call("true")


def test_the_users_ssh_configuration_counts(ssh_server, keys, home, capsys):
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").write_text(f"Host 203.0.113.7\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n")
    run_on_server("echo through", keys["rsa"], "203.0.113.7", patience_s=0)
    assert capsys.readouterr().out == "through\n"


def test_a_cut_connection_is_one_clear_line(call, ssh_server, tmp_path):
    threading.Timer(0.8, ssh_server.drop).start()
    with pytest.raises(ServerUnreachableError, match=r"connection to 127.0.0.1 was cut before the command ended"):
        call("sleep 5")


@pytest.mark.parametrize("command", ["true", "exit 3", "sleep 5"])
def test_a_machine_does_its_last_will_however_the_connection_ends(call, ssh_server, home, command):
    if command.startswith("sleep"):
        threading.Timer(0.8, ssh_server.drop).start()
    with contextlib.suppress(CommandFailedError, ServerUnreachableError):
        call(command, last_will=f"echo done > {home}/will")
    until = time.monotonic() + 10
    while not (home / "will").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_machine_that_starts_late_is_waited_for(keys, home):
    port = free_port()
    late = []
    timer = threading.Timer(1.0, lambda: late.append(SshServer(keys["rsa"].with_name("allowed"), port=port)))
    timer.start()
    out = io.StringIO()
    try:
        run_on_server("echo awake", keys["rsa"], "127.0.0.1", port=port, patience_s=20, out=out)
    finally:
        timer.join()
        late[0].stop()
    assert out.getvalue() == "awake\n"


def test_a_machine_that_does_not_answer_is_given_up(keys, home):
    start = time.monotonic()
    with pytest.raises(ServerUnreachableError, match=r"127.0.0.1 does not answer ssh .*security group"):
        run_on_server("true", keys["rsa"], "127.0.0.1", port=free_port(), patience_s=0.5)
    assert time.monotonic() - start < 10


def test_a_notebook_may_call_it_too(call):
    import asyncio

    async def cell():
        return call("echo in a loop")

    assert asyncio.run(cell())[0] == "in a loop\n"


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_openssh_is_spoken_to_as_well(keys, home, tmp_path, kind):
    import getpass

    server = OpenSsh(tmp_path / "sshd", keys["rsa"].with_name("allowed"))
    out = io.StringIO()
    options = {"port": server.port, "patience_s": 5, "out": out, "err": io.StringIO()}
    try:
        run_on_server("echo hello", keys[kind], "127.0.0.1", getpass.getuser(), **options)
        assert out.getvalue() == "hello\n"
        for command, status in [("exit 3", 3), ("kill -TERM $$", 143)]:
            with pytest.raises(CommandFailedError) as caught:
                run_on_server(command, keys[kind], "127.0.0.1", getpass.getuser(), **options)
            assert caught.value.exit_code == status
        assert not (tmp_path / "will").exists()
        run_on_server("true", keys[kind], "127.0.0.1", getpass.getuser(), last_will=f"touch {tmp_path}/will", **options)
        for _ in range(200):
            if (tmp_path / "will").exists():
                break
            time.sleep(0.05)
        assert (tmp_path / "will").exists()
    finally:
        server.stop()
