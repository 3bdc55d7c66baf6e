//! TLS on either side of the relay.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mcpscope_core::Transport;
use mcpscope_hooks::Probe;
use mcpscope_proxy::http::{Tls, Upstream};
use mcpscope_test_support::{http, within};
use mcpscope_tls::Identity;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::common::{Bench, Chaos, Proxy, connections, dropped, tool_calls};
use crate::led::{Brings, NETEM, Plain};
use crate::{call, json, post, result};

/// A certificate for `localhost`, which is its own authority, and its key.
struct Certificate {
    folder: TempDir,
}

impl Certificate {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chain.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { folder }
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("chain.pem")
    }

    fn identity(&self) -> Identity {
        Identity { chain: self.chain(), key: self.folder.path().join("key.pem") }
    }

    fn client(&self) -> ClientConfig {
        mcpscope_tls::client(Some(&self.chain()), None).unwrap()
    }
}

/// A relay that speaks TLS with both sides, in front of a server that the test plays.
struct Secure {
    bench: Bench,
    proxy: Proxy,
    upstream: TcpListener,
    ours: Certificate,
    theirs: Certificate,
}

impl Secure {
    async fn new() -> Self {
        let (ours, theirs) = (Certificate::new(), Certificate::new());
        let trusted = theirs.client();
        Self::trusting(ours, theirs, trusted).await
    }

    async fn trusting(ours: Certificate, theirs: Certificate, trusted: ClientConfig) -> Self {
        let bench = Bench::new();
        let probe = bench.probe(Transport::Http);
        Self::observed(bench, probe, (ours, theirs), trusted).await
    }

    async fn observed(
        bench: Bench,
        probe: Probe,
        (ours, theirs): (Certificate, Certificate),
        trusted: ClientConfig,
    ) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = upstream.local_addr().unwrap();
        let accept = mcpscope_tls::server(&ours.identity(), None).unwrap();
        let proxy = Proxy::start_with(address, probe, |config| {
            config.upstream = Upstream::parse(&format!("https://localhost:{}/mcp", address.port())).unwrap();
            config.tls = Tls::new(Some(trusted), Some(accept));
        })
        .await;
        Self { bench, proxy, upstream, ours, theirs }
    }

    async fn client(&self) -> client::TlsStream<TcpStream> {
        connect(self.proxy.address, self.ours.client()).await.unwrap()
    }

    async fn server(&self) -> io::Result<server::TlsStream<TcpStream>> {
        let config = Arc::new(mcpscope_tls::server(&self.theirs.identity(), None).unwrap());
        let (stream, _) = within(self.upstream.accept()).await?;
        within(TlsAcceptor::from(config).accept(stream)).await
    }

    /// A client and the server behind the relay, after a request was passed on.
    async fn asked(&self, request: &[u8]) -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
        let mut client = self.client().await;
        client.write_all(request).await.unwrap();
        let mut server = self.server().await.unwrap();
        assert_eq!(read(&mut server, request.len()).await, request);
        (client, server)
    }
}

async fn connect(address: SocketAddr, config: ClientConfig) -> io::Result<client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin), bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    within(from.read_exact(&mut all)).await.unwrap();
    all
}

#[tokio::test]
async fn exchanges_pass_byte_by_byte() {
    let secure = Secure::new().await;
    let (mut client, mut server) = secure.asked(&post(&[], &call(1, "echo"))).await;
    for id in 1..4 {
        let answer = json(&[], &result(id));
        server.write_all(&answer).await.unwrap();
        assert_eq!(read(&mut client, answer.len()).await, answer);
        let request = post(&[], &call(id + 1, "echo"));
        client.write_all(&request).await.unwrap();
        assert_eq!(read(&mut server, request.len()).await, request);
    }
    secure.bench.becomes(&tool_calls("echo", "ok"), 3).await;
    // Who leaves is told to the other side, though a call is under way.
    drop(client);
    let error = within(server.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    secure.bench.becomes(&tool_calls("echo", "cancelled"), 1).await;
}

/// With faults that have a network.
async fn led(brings: Brings) -> (Secure, Chaos, Arc<Plain>) {
    let (bench, ours, theirs) = (Bench::new(), Certificate::new(), Certificate::new());
    let chaos = Chaos::new(bench.parts(Transport::Http));
    let network = Plain::register(&chaos, brings);
    let trusted = theirs.client();
    let secure = Secure::observed(bench, chaos.probe.clone(), (ours, theirs), trusted).await;
    (secure, chaos, network)
}

#[tokio::test]
async fn what_a_client_that_leaves_has_sent_arrives_whatever_the_network_brings() {
    let (secure, chaos, _) = led(Brings::Nothing).await;
    let (mut client, mut server) = secure.asked(&post(&[], &call(1, "echo"))).await;
    let (answer, request) = (json(&[], &result(1)), post(&[], &call(2, &"x".repeat(50_000))));
    server.write_all(&answer).await.unwrap();
    assert_eq!(read(&mut client, answer.len()).await, answer);
    let fault = chaos.start("packet_loss", NETEM);
    client.write_all(&request).await.unwrap();
    chaos.hits(fault, 1).await;
    drop(client);
    assert!(read(&mut server, request.len()).await == request);
}

#[tokio::test]
async fn what_a_fault_leads_through_a_network_is_the_same_connection_before_and_after() {
    for brings in [Brings::All, Brings::Nothing] {
        let (secure, chaos, network) = led(brings).await;
        let (mut client, mut server) = secure.asked(&post(&[], &call(1, "echo"))).await;
        let mut fault = None;
        for id in 1..5 {
            let (answer, request) = (json(&[], &result(id)), post(&[], &call(id + 1, "echo")));
            server.write_all(&answer).await.unwrap();
            assert_eq!(read(&mut client, answer.len()).await, answer);
            match (id, fault) {
                (1, _) => fault = Some(chaos.start("packet_loss", NETEM)),
                (2, Some(fault)) if brings == Brings::All => drop(chaos.stop(fault).await),
                _ => {}
            }
            client.write_all(&request).await.unwrap();
            if let (1, Some(fault), Brings::Nothing) = (id, fault, brings) {
                chaos.hits(fault, 1).await;
                chaos.stop(fault).await;
            }
            assert_eq!(read(&mut server, request.len()).await, request);
        }
        assert_eq!(network.pairs(), 1, "{brings:?}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_ends_as_the_server_ended_it() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it";
    let secure = Secure::new().await;
    for is_whole in [true, false] {
        let (mut client, mut server) = secure.asked(&http::request("GET", "/mcp", &[], b"")).await;
        server.write_all(ANSWER).await.unwrap();
        if is_whole {
            server.shutdown().await.unwrap();
        }
        let mut answer = vec![0; ANSWER.len()];
        within(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, ANSWER);
        drop(server);
        let end = within(client.read(&mut [0])).await;
        assert_eq!(end.is_ok(), is_whole, "a part must not pass for the whole: {end:?}");
    }
}

#[tokio::test]
async fn half_an_answer_has_no_end_for_half_a_client_either() {
    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of it";
    let secure = Secure::new().await;
    let (mut client, mut server) = secure.asked(&http::request("GET", "/mcp", &[], b"")).await;
    server.write_all(HALF).await.unwrap();
    assert_eq!(read(&mut client, HALF.len()).await, HALF);
    // It says that it sends no more, and reads on.
    client.shutdown().await.unwrap();
    within(client.read(&mut [0])).await.unwrap_err();
    within(server.read(&mut [0])).await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_sent_nothing() {
    let (ours, theirs) = (Certificate::new(), Certificate::new());
    let foreign = Certificate::new().client();
    let secure = Secure::trusting(ours, theirs, foreign).await;
    let mut client = secure.client().await;
    client.write_all(&post(&[], &call(7, "echo"))).await.unwrap();
    secure.server().await.unwrap_err();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        within(client.read_buf(&mut answer)).await.unwrap();
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("of no known authority"), "{answer}");
    secure.bench.becomes(&tool_calls("echo", "error"), 1).await;
}

#[tokio::test]
async fn only_http_1_1_is_agreed_on() {
    let secure = Secure::new().await;
    for (offered, agreed) in [(&["h2", "http/1.1"][..], Some(&b"http/1.1"[..])), (&["h2"], None), (&[], Some(b""))] {
        let mut config = secure.ours.client();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let connected = connect(secure.proxy.address, config).await;
        let chosen = connected.as_ref().ok().map(|stream| stream.get_ref().1.alpn_protocol().unwrap_or_default());
        assert_eq!(chosen, agreed, "{offered:?}: {connected:?}");
    }
    // Who does not speak TLS at all gets no further.
    let plain = secure.proxy.connect().await;
    let mut writer = plain.writer;
    writer.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let said = plain.reader.closed().await.unwrap();
    assert!(!said.starts_with(b"HTTP/"), "{said:?}");
}

#[tokio::test]
async fn clients_without_a_handshake_are_counted_and_those_who_only_look_are_not() {
    let secure = Secure::new().await;
    drop(secure.proxy.connect().await);
    let plain = secure.proxy.connect().await;
    let mut writer = plain.writer;
    writer.write(&post(&[], &call(1, "echo"))).await.unwrap();
    plain.reader.closed().await.unwrap();
    // It trusts others.
    connect(secure.proxy.address, secure.theirs.client()).await.unwrap_err();
    // Accepted after all of them.
    let (mut client, mut server) = secure.asked(&post(&[], &call(1, "echo"))).await;
    let answer = json(&[], &result(1));
    server.write_all(&answer).await.unwrap();
    assert_eq!(read(&mut client, answer.len()).await, answer);
    secure.bench.becomes(&dropped("tls_handshake"), 2).await;
}

#[tokio::test]
async fn a_client_that_leaves_unread_is_gone_at_once() {
    let secure = Secure::new().await;
    // It waits for an answer, and has sent more ahead than is read.
    let (mut client, mut server) = secure.asked(&post(&[], &call(1, "slow"))).await;
    client.write_all(&[b'G'; 100 << 10]).await.unwrap();
    drop(client);
    let error = within(server.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    // It sends what the server does not read, and resets.
    let mut client = secure.client().await;
    let head = http::request_head("POST", "/mcp", &[crate::JSON, ("Content-Length", "1000000000")]);
    client.write_all(&head).await.unwrap();
    let _server = secure.server().await.unwrap();
    let piece = vec![b'x'; 64 << 10];
    while let Ok(written) = tokio::time::timeout(crate::slow::STUCK, client.write_all(&piece)).await {
        written.unwrap();
    }
    client.get_ref().0.set_zero_linger().unwrap();
    drop(client);
    secure.bench.becomes(&connections(Transport::Http), 0).await;
}
