//! Files with mistakes: every mistake, with its place and what was expected.

use std::{error::Error as _, fs, path::PathBuf};

use expect_test::{Expect, expect};

use super::{load, load_from};
use crate::{Origin, Problem};

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
fn check(file: &str, expected: Expect) {
    expected.assert_eq(&load(&[file.as_bytes()], &[]).unwrap_err());
}

#[test]
fn every_error_at_once() {
    check(
        "\
observability_enabled: yes
tracing:
  max_trace: 10
  max_traces: 0
  max_bytes: 4 parsecs
  sampling_rate: 1.5
  critical_paths: [json_rpc, jsonrpc]
  call_timeout: 0s
metrics: { enabled: 1, aggregation_interval: soon, retention: -5, max_label_values: 1.5, sampling_rate: 10, listen: 9464 }
dashboard:
  host: http://localhost
  port: 65536
  allowed_hosts: [fine.example, 'not:80']
  allowed_origins: ['https://inspector.example/']
proxies: {}
proxy:
  max_message: 2TiB
  idle_session: 400d
",
        expect![[r#"
            a.yaml:1:24: observability_enabled: expected true or false, found "yes"
            a.yaml:3:3: tracing.max_trace: unknown key, did you mean `max_traces`?
            a.yaml:4:15: tracing.max_traces: expected a whole number from 1 to 1000000, found 0
            a.yaml:5:14: tracing.max_bytes: expected a size from 1B to 1TiB such as 512KiB or 16MiB, or a number of bytes, found "4 parsecs"
            a.yaml:6:18: tracing.sampling_rate: expected a number from 0 to 1, found 1.5
            a.yaml:7:19: tracing.critical_paths: expected a list out of json_rpc, session_manager, registry, server, transport, tools, found "jsonrpc"
            a.yaml:8:17: tracing.call_timeout: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "0s"
            a.yaml:9:21: metrics.enabled: expected true or false, found 1
            a.yaml:9:46: metrics.aggregation_interval: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "soon"
            a.yaml:9:63: metrics.retention: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found -5
            a.yaml:9:85: metrics.max_label_values: expected a whole number from 1 to 1000000, found 1.5
            a.yaml:9:105: metrics.sampling_rate: expected a number from 0 to 1, found 10
            a.yaml:9:117: metrics.listen: expected null, or an address HOST:PORT such as 0.0.0.0:9464 or [::]:9464, found 9464
            a.yaml:11:9: dashboard.host: expected a host name or an IP address, without port or brackets, found "http://localhost"
            a.yaml:12:9: dashboard.port: expected a port from 0 (any free one) to 65535, found 65536
            a.yaml:13:18: dashboard.allowed_hosts: expected a list of host names or IP addresses, without port or brackets, found "not:80"
            a.yaml:14:20: dashboard.allowed_origins: expected a list of origins such as https://inspector.example, without default port or path, found "https://inspector.example/"
            a.yaml:15:1: proxies: unknown key
            a.yaml:17:16: proxy.max_message: expected a size from 1B to 1TiB such as 512KiB or 16MiB, or a number of bytes, found "2TiB"
            a.yaml:18:17: proxy.idle_session: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "400d""#]],
    );
}

#[test]
fn misspelt_and_misplaced_keys() {
    check(
        "trasing: { enabled: false }\nmax_bytes: 5\nenabled: true\nTracing: {}\nquite_unlike_anything: 1\ntracing.max_traces: 1\n",
        expect![[r#"
            a.yaml:1:1: trasing: unknown key, did you mean `tracing`?
            a.yaml:2:1: max_bytes: unknown key, did you mean `tracing.max_bytes`?
            a.yaml:3:1: enabled: unknown key
            a.yaml:4:1: Tracing: unknown key, did you mean `tracing`?
            a.yaml:5:1: quite_unlike_anything: unknown key
            a.yaml:6:1: tracing.max_traces: unknown key"#]],
    );
    check(
        "tracing: { sample_rate: 1 }\ndashboard: { prot: 1, hosts: [] }\n",
        expect![[r#"
        a.yaml:1:12: tracing.sample_rate: unknown key, did you mean `sampling_rate`?
        a.yaml:2:14: dashboard.prot: unknown key, did you mean `port`?
        a.yaml:2:23: dashboard.hosts: unknown key, did you mean `host`?"#]],
    );
}

#[test]
fn keys_of_later_versions() {
    check(
        "auth: { read_token_file: a, chaos_token_file: 7, token: b }\nalerting: {}\ntracing: { capture: off }\nhistory: {}\n",
        expect![[r#"
            a.yaml:1:9: auth.read_token_file: not available in this version
            a.yaml:1:47: auth.chaos_token_file: expected null, or the name of a file, found 7
            a.yaml:1:50: auth.token: unknown key
            a.yaml:2:1: alerting: not available in this version
            a.yaml:3:12: tracing.capture: not available in this version
            a.yaml:4:1: history: not available in this version"#]],
    );
}

#[test]
fn where_to_export() {
    check(
        "otel: { enabled: maybe, service_name: \"\", exporters: [otlp, zipkin], sampling: half }\n",
        expect![[r#"
            a.yaml:1:18: otel.enabled: expected auto, true or false, found "maybe"
            a.yaml:1:39: otel.service_name: expected a name of 1 to 128 bytes, found ""
            a.yaml:1:54: otel.exporters: expected a list out of otlp, console, found "zipkin"
            a.yaml:1:80: otel.sampling: expected always_on, always_off or traceidratio:SHARE such as traceidratio:0.1, also after parentbased_, found "half""#]],
    );
    check(
        "otel:\n  endpoint: http://127.0.0.1:4318\n  otlp: { endpoint: x }\n  metrics_protocol: grpc\n  sampler: always_on\nendpoint: x\n",
        expect![[r#"
            a.yaml:2:3: otel.endpoint: unknown key, set the environment variable `OTEL_EXPORTER_OTLP_ENDPOINT` instead
            a.yaml:3:3: otel.otlp: unknown key, set the environment variable `OTEL_EXPORTER_OTLP_ENDPOINT` instead
            a.yaml:4:3: otel.metrics_protocol: unknown key, set the environment variable `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL` instead
            a.yaml:5:3: otel.sampler: unknown key, did you mean `sampling`?
            a.yaml:6:1: endpoint: unknown key"#]],
    );
    for bad in ["traceidratio", "traceidratio:2", "parentbased_", "parentbased_traceidratio:x", "always_on:1"] {
        assert!(load(&[format!("otel: {{ sampling: {bad} }}\n").as_bytes()], &[]).is_err(), "{bad}");
    }
}

#[test]
fn how_a_server_is_started_again() {
    check(
        "supervision: { restart: always, backoff_min: 1m, backoff_max: 0s, give_up: 0, attempts: 3 }\n",
        expect![[r#"
            a.yaml:1:25: supervision.restart: expected auto, on-failure or never, found "always"
            a.yaml:1:63: supervision.backoff_max: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "0s"
            a.yaml:1:76: supervision.give_up: expected a whole number from 1 to 1000000, found 0
            a.yaml:1:79: supervision.attempts: unknown key"#]],
    );
    check(
        "supervision: { backoff_min: 1m }\n",
        expect!["a.yaml:1:29: supervision.backoff_min: backoff_max (30s) is shorter than backoff_min (1m)"],
    );
}

#[test]
fn duplicate_keys() {
    check(
        "tracing:\n  enabled: true\n  max_traces: 1\n  enabled: false\ntracing:\n  max_traces: 0\n",
        expect![[r#"
        a.yaml:4:3: tracing.enabled: given twice
        a.yaml:5:1: tracing: given twice"#]],
    );
}

#[test]
fn wrong_shapes() {
    check(
        "tracing: 5\nmetrics: [a]\ndashboard: off\nproxy: !tag {}\n",
        expect![[r#"
            a.yaml:1:10: tracing: expected a section with keys out of enabled, max_traces, max_bytes, sampling_rate, critical_paths, call_timeout, found 5
            a.yaml:2:10: metrics: expected a section with keys out of enabled, aggregation_interval, retention, sampling_rate, max_label_values, critical_metrics, listen, found a list
            a.yaml:3:12: dashboard: expected a section with keys out of enabled, host, port, update_interval, max_connections, subscriber_timeout, max_traces, max_metrics, allowed_hosts, allowed_origins, found "off"
            a.yaml:4:8: proxy: expected a section with keys out of max_message, queue_messages, queue_bytes, connect_timeout, header_timeout, idle_session, allowed_hosts, allowed_origins, upstream_ca_file, found a tag"#]],
    );
    check(
        "tracing: { max_traces: [1], call_timeout: { a: b }, critical_paths: json_rpc, sampling_rate: !half 0.5, max_bytes: }\nproxy: { allowed_hosts: [1, {a: 1}] }\n",
        expect![[r#"
            a.yaml:1:24: tracing.max_traces: expected a whole number from 1 to 1000000, found a list
            a.yaml:1:43: tracing.call_timeout: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found a mapping
            a.yaml:1:69: tracing.critical_paths: expected a list out of json_rpc, session_manager, registry, server, transport, tools, found "json_rpc"
            a.yaml:1:94: tracing.sampling_rate: expected a number from 0 to 1, found a tag
            a.yaml:1:116: tracing.max_bytes: expected a size from 1B to 1TiB such as 512KiB or 16MiB, or a number of bytes, found nothing
            a.yaml:2:25: proxy.allowed_hosts: expected a list of host names or IP addresses, without port or brackets, found 1"#]],
    );
    check(
        "just text",
        expect![[
            r#"a.yaml:1:1: expected a section with keys out of observability_enabled, tracing, metrics, instrumentation, chaos, dashboard, grpc, probe, auth, otel, tls, proxy, supervision, servers, found "just text""#
        ]],
    );
    check(
        "- a\n- b\n",
        expect![
            "a.yaml:1:1: expected a section with keys out of observability_enabled, tracing, metrics, instrumentation, chaos, dashboard, grpc, probe, auth, otel, tls, proxy, supervision, servers, found a list"
        ],
    );
    check(
        "!tag {}\n",
        expect![
            "a.yaml:1:1: expected a section with keys out of observability_enabled, tracing, metrics, instrumentation, chaos, dashboard, grpc, probe, auth, otel, tls, proxy, supervision, servers, found a tag"
        ],
    );
    check(
        "[a, b]: 1\n? {c: d}\n: 2\n~: 3\n7: 4\n!t x: 5\ntracing: { [e]: 1, max_traces: 0 }\n",
        expect![[r#"
        a.yaml:1:1: expected the name of a key
        a.yaml:2:3: expected the name of a key
        a.yaml:4:1: ~: unknown key
        a.yaml:5:1: 7: unknown key
        a.yaml:6:1: x: unknown key
        a.yaml:7:12: tracing: expected the name of a key
        a.yaml:7:32: tracing.max_traces: expected a whole number from 1 to 1000000, found 0"#]],
    );
    check(
        "dashboard: { port: 340282366920938463463374607431768211455, host: -170141183460469231731687303715884105728 }\ntracing: { sampling_rate: .nan, max_traces: .inf }",
        expect![[r#"
            a.yaml:1:20: dashboard.port: expected a port from 0 (any free one) to 65535, found 3.402823669209385e38
            a.yaml:1:67: dashboard.host: expected a host name or an IP address, without port or brackets, found -1.7014118346046923e38
            a.yaml:2:27: tracing.sampling_rate: expected a number from 0 to 1, found .nan
            a.yaml:2:45: tracing.max_traces: expected a whole number from 1 to 1000000, found .inf"#]],
    );
}

#[test]
fn broken_syntax() {
    check(
        "tracing:\n\tenabled: true\n",
        expect![
            "a.yaml:2:1: not valid YAML: found character that cannot start any token at line 2 column 1, while scanning for the next token"
        ],
    );
    check(
        "tracing: { enabled: true\nmetrics: 5\n",
        expect![
            "a.yaml:2:8: not valid YAML: did not find expected ',' or '}' at line 2 column 8, while parsing a flow mapping at line 1 column 10"
        ],
    );
    check(
        "max: 1\ntracing:\n  enabled: *nowhere\n",
        expect!["a.yaml:3:12: not valid YAML: unknown anchor at line 3 column 12"],
    );
    check(
        "tracing: {}\n---\nmetrics: {}\n",
        expect!["a.yaml: not valid YAML: deserializing from YAML containing more than one document is not supported"],
    );
    check(
        "a: 'no end",
        expect![
            "a.yaml:1:11: not valid YAML: found unexpected end of stream at line 1 column 11, while scanning a quoted scalar at line 1 column 4"
        ],
    );
}

#[test]
fn anchors_are_followed_and_bounded() {
    let settings = load(&[b"tracing: { enabled: &off false }\nmetrics: { enabled: *off }\n"], &[]).unwrap();
    assert!(!settings.tracing.enabled && !settings.metrics.enabled);
    check(
        "tracing: &t { enabled: false, max_traces: 0 }\nmetrics: *t\nproxy: { <<: *t }\n",
        expect![[r#"
            a.yaml:1:43: tracing.max_traces: expected a whole number from 1 to 1000000, found 0
            a.yaml:1:31: metrics.max_traces: unknown key
            a.yaml:3:10: proxy.<<: unknown key"#]],
    );
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in ('b'..='j').zip('a'..) {
        bomb += &format!(
            "{this}: &{this} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n"
        );
    }
    check(
        &format!("{bomb}proxy: {{ allowed_hosts: *j }}\n"),
        expect![[r#"
        a.yaml:1:1: a: unknown key
        a.yaml:2:1: b: unknown key
        a.yaml:3:1: c: unknown key
        a.yaml:4:1: d: unknown key
        a.yaml:5:1: e: unknown key
        a.yaml:6:1: f: unknown key
        a.yaml:7:1: g: unknown key
        a.yaml:8:1: h: unknown key
        a.yaml:9:1: i: unknown key
        a.yaml:10:1: j: unknown key
        a.yaml: proxy.allowed_hosts: repetition limit exceeded"#]],
    );
    check(
        "tracing: &self\n  max_traces: *self\nproxy: { allowed_hosts: &l [*l] }\n",
        expect![[r#"
        a.yaml:1:10: tracing.max_traces: expected a whole number from 1 to 1000000, found a mapping
        a.yaml:3:25: proxy.allowed_hosts: recursion limit exceeded at line 3 column 25"#]],
    );
}

#[test]
fn settings_at_odds() {
    check(
        "metrics:\n  retention: 5s\n",
        expect!["a.yaml:2:14: metrics.retention: retention (5s) is shorter than aggregation_interval (10s)"],
    );
    check(
        "metrics:\n  nonsense: 1\n  aggregation_interval: 2h\n",
        expect![[r#"
        a.yaml:2:3: metrics.nonsense: unknown key
        a.yaml:3:25: metrics.aggregation_interval: retention (1h) is shorter than aggregation_interval (2h)"#]],
    );
    check(
        "metrics:\n  aggregation_interval: 2h\n  retention: 60\n",
        expect!["a.yaml:3:14: metrics.retention: retention (60ms) is shorter than aggregation_interval (2h)"],
    );
    // The retention that was meant is not known, so nothing is said about it.
    check(
        "metrics: { aggregation_interval: 2h, retention: lots }\n",
        expect![[
            r#"a.yaml:1:49: metrics.retention: expected a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds, found "lots""#
        ]],
    );
    check(
        "tls:\n  cert_file: a.pem\n",
        expect!["a.yaml:2:14: tls.cert_file: a certificate needs its key, and a key its certificate"],
    );
    check(
        "tls:\n  client_ca_file: a.pem\n",
        expect![
            "a.yaml:2:19: tls.client_ca_file: clients can be checked by their certificates only where tls.cert_file switches TLS on"
        ],
    );
    // The last word on it is in the second file.
    let (first, second) = ("metrics: { retention: 1s }", "\n\nmetrics: { retention: 2s }");
    expect!["b.yaml:3:23: metrics.retention: retention (2s) is shorter than aggregation_interval (10s)"]
        .assert_eq(&load(&[first.as_bytes(), second.as_bytes()], &[]).unwrap_err());
}

#[test]
fn errors_of_all_files() {
    expect![[r#"
        a.yaml:1:1: a: unknown key
        b.yaml:1:1: is not UTF-8
        c.yaml:2:1: not valid YAML: did not find expected node content at line 2 column 1, while parsing a flow node
        d.yaml:1:1: b: unknown key
        MCPSCOPE_C: unknown variable"#]]
    .assert_eq(&load(&[b"a: 1\n", b"\xff", b"proxy: {", b"b: 1\n"], &[("MCPSCOPE_C", "1")]).unwrap_err());
}

#[test]
fn long_and_odd_text_stays_on_one_line() {
    let long = "x".repeat(200);
    check(
        &format!("? {long}\n: 1\n\"a\\nb\\u001b[31m\": 2\ndashboard: {{ host: \"{long}\", port: \"1\\n2\" }}\n"),
        expect![[r#"
            a.yaml:1:3: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…: unknown key
            a.yaml:3:1: a\nb\u{1b}[31m: unknown key
            a.yaml:4:20: dashboard.host: expected a host name or an IP address, without port or brackets, found "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"
            a.yaml:4:230: dashboard.port: expected a port from 0 (any free one) to 65535, found "1\n2""#]],
    );
}

#[test]
fn the_number_of_errors_is_bounded() {
    let lines = |count| (0..count).map(|n| format!("nothing_like_it_{n}: 1\n")).collect::<String>();
    assert_eq!(load(&[lines(100).as_bytes()], &[]).unwrap_err().lines().count(), 100);
    let many = load(&[lines(500).as_bytes()], &[]).unwrap_err();
    assert_eq!(many.lines().count(), 101);
    expect!["a.yaml: more errors follow; these are the first 100"].assert_eq(many.lines().last().unwrap());
}

#[test]
fn unreadable_files() {
    let missing = load_from(&[PathBuf::from("/nowhere/mcpscope.yaml")], &[]).unwrap_err();
    expect!["/nowhere/mcpscope.yaml: cannot be read: No such file or directory (os error 2)"]
        .assert_eq(&missing.to_string());
    assert!(missing.errors()[0].problem.source().is_some(), "the I/O error is kept");

    let folder = tempfile::tempdir().unwrap();
    let error = load_from(&[folder.path().to_owned()], &[]).unwrap_err();
    assert!(matches!(&error.errors()[0].problem, Problem::Unreadable(_)), "{error}");

    let path = folder.path().join("large.yaml");
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = load_from(std::slice::from_ref(&path), &[]).unwrap_err();
    assert!(matches!(&error.errors()[0].problem, Problem::TooLarge), "{error}");
    fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    load_from(&[path], &[]).unwrap();
}

#[test]
fn too_deep() {
    let deep = |depth| format!("# {{\nproxy: {{ allowed_hosts: {}{} }}\n", "[".repeat(depth), "]".repeat(depth));
    check(&deep(200), expect!["a.yaml:2:151: brackets are nested more than 128 deep"]);
    check(
        &deep(126),
        expect![
            "a.yaml:2:25: proxy.allowed_hosts: expected a list of host names or IP addresses, without port or brackets, found a list"
        ],
    );
}

#[test]
fn not_utf8() {
    let error = load(&[b"# fine\ntracing: {} # \xe4\n"], &[]).unwrap_err();
    expect!["a.yaml:2:15: is not UTF-8"].assert_eq(&error);
}

#[test]
fn places_are_data_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yaml");
    fs::write(&path, "tracing:\n  max_trace: 1\n").unwrap();
    let errors = load_from(std::slice::from_ref(&path), &[]).unwrap_err();
    let error = &errors.errors()[0];
    assert_eq!(error.origin, Origin::File { path, place: Some((2, 3)) });
    assert_eq!(error.path.as_deref(), Some("tracing.max_trace"));
    assert!(matches!(&error.problem, Problem::Unknown { likely: Some(likely), .. } if likely == "max_traces"));
}
