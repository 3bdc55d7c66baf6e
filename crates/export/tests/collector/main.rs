//! Whole exports over real sockets, to the service that `opentelemetry-proto` generates and to a plain HTTP server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod server;
#[path = "../../src/testing.rs"]
mod testing;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use mcpscope_export::{Config, Counts, Parts, Service, Settings};
use mcpscope_health::State;
use prost::Message as _;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use server::{Answer, Certificates, Collector};
use testing::World;

/// What is written to the console.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn config(variables: &[(&str, &str)]) -> Config {
    let service = Service { version: "1".to_owned(), instance_id: "i".to_owned() };
    let all = [&[("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_METRICS_EXPORTER", "none")], variables].concat();
    let all = all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    // The last of a name counts.
    let (config, warnings) = Config::read(&Settings::default(), &service, all);
    assert_eq!(warnings, []);
    config
}

/// Exports so many spans until `stop`; returns also how health was last.
async fn export(
    variables: &[(&str, &str)],
    spans: u64,
    stop: impl Future<Output = ()>,
) -> (Counts, Option<(State, String)>) {
    let world = World::new(64 << 20);
    let parts = Parts {
        reader: world.reader.clone(),
        exports: Some(world.exports()),
        reporter: world.reporter.clone(),
        console: Box::new(Console::default()),
    };
    world.call(spans);
    let counts = mcpscope_export::export(config(variables), parts, stop).await;
    assert_eq!(counts.exported_spans + counts.dropped_spans, spans);
    assert_eq!(world.dropped("export_span"), counts.dropped_spans);
    (counts, world.health())
}

const fn exported(spans: u64) -> Counts {
    Counts { exported_spans: spans, dropped_spans: 0 }
}

const fn dropped(spans: u64) -> Counts {
    Counts { exported_spans: 0, dropped_spans: spans }
}

#[tokio::test]
async fn over_grpc_with_everything() {
    for (compression, encoding) in [("none", None), ("gzip", Some("gzip"))] {
        let collector = Collector::grpc([], None).await;
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url("http")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ];
        let (counts, health) = export(&variables, 10, async {}).await;
        assert_eq!((counts, health), (exported(10), None));
        assert_eq!((collector.spans(), collector.metrics() > 0), (10, true));
        for head in collector.heads() {
            assert_eq!(head.get("authorization").unwrap(), "Bearer token");
            assert!(head["user-agent"].to_str().unwrap().starts_with("mcpscope/"), "{head:?}");
            assert_eq!(head.get("grpc-encoding").map(|value| value.to_str().unwrap()), encoding);
            assert_eq!(head["grpc-timeout"], "10000000u");
        }
    }
}

#[tokio::test]
async fn over_http_with_everything() {
    for (compression, encoding) in [("none", None), ("gzip", Some("gzip"))] {
        let collector = Collector::http([], None).await;
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url("http")),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token,content-type=text/plain"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ];
        let (counts, health) = export(&variables, 10, async {}).await;
        assert_eq!((counts, health), (exported(10), None));
        assert_eq!((collector.spans(), collector.metrics() > 0), (10, true));
        for head in collector.heads() {
            assert_eq!(head.get("authorization").unwrap(), "Bearer token");
            assert_eq!(head.get("content-type").unwrap(), "application/x-protobuf");
            assert_eq!(head.get("content-encoding").map(|value| value.to_str().unwrap()), encoding);
        }
    }
}

#[tokio::test]
async fn over_tls_with_a_certificate_of_our_own() {
    let certificates = Certificates::new();
    for protocol in ["grpc", "http/protobuf"] {
        let collector = match protocol {
            "grpc" => Collector::grpc([], Some(&certificates)).await,
            _ => Collector::http([], Some(&certificates)).await,
        };
        let url = collector.url("https");
        let plain = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let trusting = [&plain[..], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", certificates.path("ca.pem"))]].concat();
        let own = [
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificates.path("client.pem")),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", certificates.path("client.key")),
        ];
        let known = [&trusting[..], &own].concat();
        assert_eq!(export(&known, 5, async {}).await, (exported(5), None), "{protocol}");
        assert_eq!(collector.spans(), 5);

        // Whom we do not trust, and who does not know us.
        for (variables, what) in [(&plain[..], "certificate"), (&trusting, "ertificate")] {
            let (counts, health) = export(variables, 5, async {}).await;
            assert_eq!(counts, dropped(5), "{protocol}");
            let (state, message) = health.unwrap();
            assert!(state == State::Warning && message.contains(what), "{protocol}: {message}");
        }
        let missing = [&plain[..], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file.pem")]].concat();
        let (counts, health) = export(&missing, 5, async {}).await;
        assert_eq!(counts, dropped(5));
        let message = health.unwrap().1;
        let expected = "cannot read /no/such/file.pem as PEM: I/O error: No such file or directory";
        assert!(message.contains(expected), "{protocol}: {message}");
        assert_eq!(collector.spans(), 5);
    }
}

#[tokio::test]
async fn http_answers_by_the_specification() {
    let told = tonic_types::Status { message: "too\nlarge".to_owned(), ..Default::default() }.encode_to_vec();
    let status = |status: StatusCode| Answer::Http { status, retry_after: None, body: Vec::new() };
    for (answer, requests, counts, says) in [
        (
            Answer::Http { status: StatusCode::TOO_MANY_REQUESTS, retry_after: Some("1"), body: Vec::new() },
            2,
            exported(5),
            "",
        ),
        (status(StatusCode::BAD_GATEWAY), 2, exported(5), ""),
        (status(StatusCode::SERVICE_UNAVAILABLE), 2, exported(5), ""),
        (status(StatusCode::GATEWAY_TIMEOUT), 2, exported(5), ""),
        (status(StatusCode::INTERNAL_SERVER_ERROR), 1, dropped(5), "fails: 500 Internal Server Error"),
        (status(StatusCode::UNAUTHORIZED), 1, dropped(5), "fails: 401 Unauthorized"),
        (
            status(StatusCode::NOT_FOUND),
            1,
            dropped(5),
            "fails: 404 Not Found: it takes no traces at this path; check path and port",
        ),
        (status(StatusCode::MOVED_PERMANENTLY), 1, dropped(5), "fails: 301 Moved Permanently"),
        (
            Answer::Http { status: StatusCode::BAD_REQUEST, retry_after: None, body: told },
            1,
            dropped(5),
            "fails: 400 Bad Request: too large",
        ),
        // Taken is taken.
        (Answer::Http { status: StatusCode::OK, retry_after: None, body: b"nonsense".to_vec() }, 1, exported(5), ""),
        (Answer::Cut, 2, exported(5), ""),
        (
            Answer::Partial(2, "no room"),
            1,
            Counts { exported_spans: 3, dropped_spans: 2 },
            "fails: 2 of 5 spans rejected: no room",
        ),
    ] {
        let what = format!("{answer:?}");
        let collector = Collector::http([answer], None).await;
        let (found, health) = export(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url("http"))], 5, async {
            collector.until(requests).await;
            // Until what follows from the answer is known too; a retry waits for a second at least.
            tokio::time::sleep(Duration::from_millis(100)).await;
        })
        .await;
        assert_eq!((found, collector.requests()), (counts, requests), "{what}");
        let message = health.map(|(_, message)| message).unwrap_or_default();
        let told = if says.is_empty() {
            message.is_empty() || message == "Observability running"
        } else {
            message.ends_with(says)
        };
        assert!(told, "{what}: {message}");
    }
}

#[tokio::test]
async fn grpc_answers_by_the_specification() {
    let soon = ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
    let exhausted = |details| Status::with_error_details(tonic::Code::ResourceExhausted, "busy", details);
    for (answer, requests, counts, says) in [
        (Answer::Grpc(Status::unavailable("restarting")), 2, exported(5), ""),
        (Answer::Grpc(Status::aborted("")), 2, exported(5), ""),
        (Answer::Grpc(exhausted(soon)), 2, exported(5), ""),
        (Answer::Grpc(exhausted(ErrorDetails::new())), 1, dropped(5), "fails: ResourceExhausted: busy"),
        (
            Answer::Grpc(Status::permission_denied("who are you?")),
            1,
            dropped(5),
            "fails: PermissionDenied: who are you?",
        ),
        (Answer::Grpc(Status::internal("")), 1, dropped(5), "fails: Internal"),
        (
            Answer::Grpc(Status::unimplemented("unknown service")),
            1,
            dropped(5),
            "fails: Unimplemented: it takes no traces over gRPC; check the port",
        ),
        (
            Answer::Partial(2, "no room"),
            1,
            Counts { exported_spans: 3, dropped_spans: 2 },
            "fails: 2 of 5 spans rejected: no room",
        ),
        // More than there were.
        (Answer::Partial(99, ""), 1, dropped(5), "fails: 99 of 5 spans rejected: "),
        (Answer::Partial(0, "careful"), 1, exported(5), ""),
    ] {
        let what = format!("{answer:?}");
        let collector = Collector::grpc([answer], None).await;
        let url = collector.url("http");
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let (found, health) = export(&variables, 5, async {
            collector.until(requests).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        })
        .await;
        assert_eq!((found, collector.requests()), (counts, requests), "{what}");
        let message = health.map(|(_, message)| message).unwrap_or_default();
        let told = if says.is_empty() {
            message.is_empty() || message == "Observability running"
        } else {
            message.ends_with(says)
        };
        assert!(told, "{what}: {message}");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_does_not_hold_up_the_end() {
    for protocol in ["grpc", "http/protobuf"] {
        // Bound and let go: nobody listens there.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{gone}");
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let (counts, health) = export(&variables, 5, async {}).await;
        assert_eq!(counts, dropped(5));
        let message = health.unwrap().1;
        let expected = format!("{gone} fails: nothing listens there; check that the collector runs, and the port");
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[tokio::test]
async fn a_collector_that_hangs_is_given_up() {
    for protocol in ["grpc", "http/protobuf"] {
        // Accepts by its backlog, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "200"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "300"),
        ];
        let (counts, health) = export(&variables, 5, tokio::time::sleep(Duration::from_millis(600))).await;
        assert_eq!(counts, dropped(5));
        let message = health.unwrap().1;
        let silent = message.contains("fails: no answer within ") || message.contains("no connection comes about");
        assert!(silent, "{message}");
    }
}

/// What listens on ports that are not a collector's, or not for this protocol, says to whatever it gets.
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
const TLS_ALERT: &[u8] = b"\x15\x03\x01\0\x02\x02\x16";

/// Says this to whoever says something first, and then nothing until they leave.
async fn stranger(says: &'static [u8]) -> (String, JoinSet<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                // Who left already needs no answer.
                let _ = stream.read(&mut [0; 16]).await;
                let _ = stream.write_all(says).await;
                if !says.is_empty() {
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
            });
        }
    });
    (addr.to_string(), tasks)
}

#[tokio::test]
async fn what_listens_on_a_wrong_port_is_told_in_plain_words() {
    let (grpc, http) = ("grpc", "http/protobuf");
    let no_tls = "it speaks no TLS on this port; check https:// and the port";
    let no_grpc = "it speaks no gRPC on this port; is it the HTTP port, or should it be https://?";
    let no_http = "it speaks no HTTP/1.1 on this port; is it the gRPC port, or should it be https://?";
    let closes = "it closes the connection without an answer; check protocol and port";
    for (says, scheme, protocol, expected) in [
        (SETTINGS, "http", http, no_http),
        (SETTINGS, "https", http, no_tls),
        (BAD_REQUEST, "http", grpc, no_grpc),
        (BAD_REQUEST, "https", grpc, no_tls),
        (TLS_ALERT, "http", http, no_http),
        (TLS_ALERT, "http", grpc, no_grpc),
        (b"", "http", http, closes),
        (b"", "http", grpc, closes),
        (b"", "https", http, closes),
    ] {
        let (addr, _tasks) = stranger(says).await;
        let url = format!("{scheme}://{addr}");
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ];
        let (counts, health) = export(&variables, 5, async {}).await;
        assert_eq!(counts, dropped(5));
        let (state, message) = health.unwrap();
        let told = format!("Observability failing: exporting metrics and traces to {addr} fails: {expected}");
        assert_eq!((state, message), (State::Warning, told), "{scheme} {protocol}");
    }
}

#[tokio::test]
async fn a_host_without_an_address_is_told_in_plain_words() {
    // No name of a host is that long, so nobody is asked for it.
    let url = format!("http://{}:4318", "x".repeat(64));
    let (counts, health) = export(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)], 5, async {}).await;
    assert_eq!(counts, dropped(5));
    let message = health.unwrap().1;
    assert!(message.ends_with("fails: the name of the host cannot be resolved; check it"), "{message}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_told_at_the_start_and_may_come_later() {
    let certificates = Certificates::new();
    let collector = Collector::http([], Some(&certificates)).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url("https")),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().unwrap()),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificates.path("client.pem")),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", certificates.path("client.key")),
        ("OTEL_METRICS_EXPORTER", "otlp"),
    ];
    let world = World::new(64 << 20);
    let parts = Parts {
        reader: world.reader.clone(),
        exports: Some(world.exports()),
        reporter: world.reporter.clone(),
        console: Box::new(Console::default()),
    };
    let until = async |state| {
        while world.health().map(|(state, _)| state) != Some(state) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let log = testing::Log::default();
    let _guard = log.collect(tracing::Level::WARN);
    let stop = async {
        until(State::Warning).await;
        let message = world.health().unwrap().1;
        let both = "exporting metrics and traces to localhost:";
        assert!(
            message.contains(both) && message.contains(&format!("fails: cannot read {}", ca.display())),
            "{message}"
        );
        let told = log.text();
        let told_of = format!("cannot read {} as PEM: I/O error: No such file or directory", ca.display());
        assert_eq!(told.matches(&told_of).count(), 2, "{told}");
        // Nothing was sent yet, nor is anything to be: it is looked for all the same.
        std::fs::copy(certificates.path("ca.pem"), &ca).unwrap();
        collector.until(1).await;
        world.call(5);
        collector.until(2).await;
    };
    let export = mcpscope_export::export(config(&variables), parts, stop);
    let counts = tokio::time::timeout(Duration::from_secs(60), export).await.expect("it is told, and works then");
    assert_eq!((counts, collector.spans()), (exported(5), 5));
}

#[tokio::test]
async fn the_console_shows_each_span_as_a_line() {
    let world = World::new(64 << 20);
    let console = Console::default();
    let parts = Parts {
        reader: world.reader.clone(),
        exports: Some(world.exports()),
        reporter: world.reporter.clone(),
        console: Box::new(console.clone()),
    };
    world.call(3);
    let counts = mcpscope_export::export(config(&[("OTEL_TRACES_EXPORTER", "console")]), parts, async {}).await;
    assert_eq!(counts, exported(3));
    let text = String::from_utf8(console.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert_eq!(
            (&line["name"], &line["kind"], &line["status"]),
            (&"tools/call echo".into(), &"server".into(), &"ok".into())
        );
        assert_eq!((&line["duration_ms"], &line["parent_id"]), (&5.0.into(), &serde_json::Value::Null));
        let attributes = &line["attributes"];
        assert_eq!((&attributes["gen_ai.tool.name"], &attributes["mcpscope.server"]), (&"echo".into(), &"s".into()));
        assert_eq!(
            (&attributes["mcpscope.request_bytes"], &attributes["mcpscope.response_bytes"]),
            (&10.into(), &20.into())
        );
        assert_eq!(line["timestamp"].as_str().map(str::len), Some("1970-01-12T13:46:40.000000Z".len()));
        assert_eq!(line["trace_id"].as_str().map(str::len), Some(32));
    }
}

/// Never takes anything, until it is let go.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_console_that_hangs_does_not_hold_up_the_end() {
    let world = World::new(64 << 20);
    let (let_go, stuck) = std::sync::mpsc::channel();
    let parts = Parts {
        reader: world.reader.clone(),
        exports: Some(world.exports()),
        reporter: world.reporter.clone(),
        console: Box::new(Stuck(stuck)),
    };
    world.call(3);
    let export = mcpscope_export::export(config(&[("OTEL_TRACES_EXPORTER", "console")]), parts, async {});
    let counts = tokio::time::timeout(4 * mcpscope_export::FLUSH, export).await.expect("it ends");
    assert_eq!(counts, dropped(3));
    drop(let_go);
}
