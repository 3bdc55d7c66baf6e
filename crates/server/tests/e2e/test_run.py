"""`mcpscope run` is indistinguishable from the command it runs, for client and server alike."""

import pytest

# Bytes that a line-, text- or JSON-minded relay would change.
INPUTS = {
    "nothing": b"",
    "one line": b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
    "no newline at the end": b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
    "order and numbers": b'{ "id" : 1.0, "method":"x" ,"z":123456789012345678901,"a":1e400, "a":2,"jsonrpc":"2.0"}\n',
    "escapes": b'{"jsonrpc":"2.0","id":"\\u0041\\/\\ud800","method":"tools/call","params":{"name":"\\u0000"}}\n',
    "batch": b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"n"}]\n[]\n',
    "not utf-8": b'\xff\xfe\x80{"jsonrpc":"2.0"\xc3\x28}\n\xf0\x9f\n',
    "line ends": b"a\r\nb\r\r\n\n\n\r\n \t\n",
    "zeros": b"\0\0\n\0",
    "byte order mark": b"\xef\xbb\xbf{}\n",
    "every byte": bytes(range(256)) * 700 + b"\n",
    "a long line": b'{"jsonrpc":"2.0","id":1,"method":"m","params":"' + b"x" * 3_000_000 + b'"}\n',
    "many lines": b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"m"}\n' % n for n in range(20_000)),
    "deep": b"[" * 100_000 + b"\n",
}


def run(instances, *command: str, input: bytes = b"", options=("--dashboard", "off")):
    return instances.finish("run", *options, "--", *command, input=input)


@pytest.mark.parametrize("name", INPUTS)
def test_bytes_pass_unchanged_both_ways(instances, name):
    done = run(instances, "cat", input=INPUTS[name])
    # Not `==` in the assertion: pytest would print megabytes.
    same = done.stdout == INPUTS[name]
    assert same, f"{len(done.stdout)} bytes instead of {len(INPUTS[name])}, or other ones"
    assert done.returncode == 0


def test_bytes_pass_unchanged_with_the_dashboard_on(instances):
    """Seen, not just relayed: the same with the message scan at work."""
    everything = b"".join(INPUTS.values())
    done = run(instances, "cat", input=everything, options=("--dashboard", "127.0.0.1:0"))
    same = done.stdout == everything
    assert same and done.returncode == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 64", 64),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        ("kill -INT $$", 128 + 2),
    ],
)
def test_exit_code_is_the_childs(instances, script, code):
    assert run(instances, "sh", "-c", script).returncode == code


def test_it_ends_with_the_child_even_if_the_client_keeps_stdin_open(instances):
    instance = instances.run(command=["sh", "-c", "echo last words; exit 3"], dashboard="off", ready=False)
    assert instance.wait(5) == 3
    assert instance.process.stdout.read() == b"last words\n"


def test_output_after_the_end_of_input_still_arrives(instances):
    """EOF is passed on, and does not end the relay in the other direction."""
    done = run(instances, "sh", "-c", "cat >/dev/null; printf 'after EOF'; exit 5", input=b"one\ntwo\n")
    assert (done.stdout, done.returncode) == (b"after EOF", 5)


def test_the_child_may_close_stdin_and_go_on(instances):
    """Writing to a child that does not read must not end the session."""
    child = ["sh", "-c", "exec <&-; echo still here; read nothing; echo done"]
    done = run(instances, *child, input=b"x" * 1_000_000)
    assert (done.stdout, done.returncode) == (b"still here\ndone\n", 0)


def test_a_client_that_stops_reading_ends_the_child(instances):
    """Without mcpscope the child would get SIGPIPE; behind it, it must not write for ever to nobody."""
    instance = instances.run(command=["yes"], dashboard="off")
    assert instance.process.stdout.read(2) == b"y\n"
    instance.process.stdout.close()
    assert instance.wait(5) != 0


def test_stderr_passes_unchanged(instances):
    done = run(instances, "sh", "-c", r"printf 'b\377d\001 no newline' >&2; printf out")
    assert b"b\xffd\x01 no newline" in done.stderr
    assert done.stdout == b"out"


def test_arguments_directory_and_environment_are_the_clients(instances, tmp_path, environment):
    script = 'pwd; printf "%s|" "$@"; printf "%s" "$E2E_MARK"'
    command = ["sh", "-c", script, "sh", "--dashboard", "", "a b", "$HOME", "-x"]
    instance = instances.run(command=command, dashboard="off", cwd=tmp_path, ready=False)
    stdout, _ = instance.process.communicate(timeout=10)
    assert stdout.decode() == f"{tmp_path}\n--dashboard||a b|$HOME|-x|{environment.mark}"


def test_listeners_are_printed_on_stderr_only(instances):
    instance = instances.run(command=["cat"])
    assert f"dashboard {instance.dashboard}" in instance.stderr().splitlines()
    stdout, _ = instance.process.communicate(b"", timeout=10)
    assert stdout == b"" and instance.process.returncode == 0


def test_the_ready_file_without_a_dashboard(instances):
    instance = instances.run(command=["cat"], dashboard="off")
    assert "dashboard" not in instance.ready


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "--dashbord", "off", "--", "cat"], "--dashboard"),
        (["run", "--nmae", "x", "--", "cat"], "--name"),
        (["run", "--name", "", "--", "cat"], "expected a name of 1 to 128 bytes"),
        (["run"], "CMD"),
        (["run", "--dashboard", "nonsense", "--", "cat"], "nonsense"),
        (["proxy", "--listen", "127.0.0.1:0"], "--upstream"),
        (["proxy", "--upstream", "http://127.0.0.1:1/mcp"], "--listen"),
        (["proxy", "--upstrem", "http://127.0.0.1:1/mcp", "--listen", "127.0.0.1:0"], "--upstream"),
        (["proxy", "--upstream", "ftp://127.0.0.1/mcp", "--listen", "127.0.0.1:0"], "ftp"),
        (["proxy", "--upstream", "not a url", "--listen", "127.0.0.1:0"], "not a url"),
        (["prxy"], "proxy"),
    ],
)
def test_a_wrong_command_line_names_what_was_meant(instances, arguments, hint):
    done = instances.finish(*arguments)
    assert done.returncode == 64, done.stderr
    assert hint.lower() in done.stderr.decode().lower()
    assert done.stdout == b""


@pytest.mark.parametrize("command", ["mcpscope-no-such-command", "./no/such/file"])
def test_a_command_that_does_not_exist(instances, command):
    done = run(instances, command, "argument", input=b"{}\n")
    assert done.returncode == 127
    (line,) = done.stderr.decode().splitlines()
    assert command in line
    assert done.stdout == b""


def test_a_command_that_does_not_exist_starts_no_listener(instances):
    """The one clear line is the only one, with the default listeners too."""
    done = instances.finish("run", "--", "mcpscope-no-such-command")
    assert done.returncode == 127
    # Somebody else on this machine may have a default port.
    lines = [line for line in done.stderr.decode().splitlines() if "takes a free port instead" not in line]
    assert len(lines) == 1, done.stderr
