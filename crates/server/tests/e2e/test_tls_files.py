"""Files of TLS that the configuration names: what is wrong with them is told at once, and who does not use them says so."""

CONFIG = "tls:\n  cert_file: {0}/empty.pem\n  key_file: {0}/key.pem\n  client_ca_file: {0}/missing.pem\n"
ENCRYPTED = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"


def configured(tmp_path):
    (tmp_path / "empty.pem").touch()
    (tmp_path / "key.pem").write_text(ENCRYPTED)
    file = tmp_path / "tls.yaml"
    file.write_text(CONFIG.format(tmp_path))
    return file


def test_all_mistakes_are_told_by_their_place(instances, tmp_path):
    file = configured(tmp_path)
    arguments = ("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0")
    done = instances.finish("proxy", "--config", str(file), *arguments)
    first, second, third = done.stderr.decode().splitlines()
    assert done.returncode == 64 and done.stdout == b""
    assert f"{file}:2:14: tls.cert_file: {tmp_path}/empty.pem holds no certificate" in first
    assert f"{file}:3:13: tls.key_file: the private key in {tmp_path}/key.pem is encrypted; `openssl pkey" in second
    assert f"{file}:4:19: tls.client_ca_file: cannot read {tmp_path}/missing.pem" in third


def test_a_file_is_looked_for_where_the_one_is_that_names_it(instances, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "key.pem").write_text(ENCRYPTED)
    file = tmp_path / "below" / "tls.yaml"
    file.write_text("tls: { cert_file: cert.pem, key_file: ./key.pem }\n")
    arguments = ("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0")
    done = instances.finish("proxy", "--config", str(file), *arguments)
    first, second = done.stderr.decode().splitlines()
    assert done.returncode == 64
    assert f"tls.cert_file: cannot read {file.parent}/cert.pem" in first
    assert f"tls.key_file: the private key in {file.parent}/./key.pem is encrypted" in second


def test_who_does_not_use_them_says_so(instances, tmp_path):
    file = configured(tmp_path)
    done = instances.finish("run", "--config", str(file), "--dashboard", "off", "--grpc", "off", "--", "true")
    assert done.returncode == 0
    assert "tls.cert_file, tls.key_file, tls.client_ca_file: for `mcpscope proxy`" in done.stderr.decode()


def test_certificates_that_check_nobody_are_said_to_be_unused(instances, tmp_path):
    file = tmp_path / "ca.yaml"
    file.write_text("proxy: { upstream_ca_file: ca.pem }\n")
    proxy = instances.proxy("http://127.0.0.1:1/mcp", "--config", str(file))
    assert "proxy.upstream_ca_file: for `https` upstreams; http://127.0.0.1:1 is none, and does not use it" in proxy.stderr()
