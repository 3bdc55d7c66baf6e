//! Files, environment and defaults in their order, and the default file.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_yaml::Value;

use super::load;
use crate::{
    ChaosMode, InvalidRatio, Ratio, Restart, Settings, Tls,
    environment::{environment, variable},
    root::Root,
    tree::Tree,
};

#[test]
fn nothing_given_means_the_defaults() {
    let sections_only = "tracing:\nmetrics: {}\ndashboard: ~\n";
    for files in [
        &[][..],
        &[""],
        &["# only a comment\n"],
        &["---\n"],
        &["{}"],
        &["null"],
        &[sections_only],
        &["\u{feff}# BOM\n"],
    ] {
        let files: Vec<&[u8]> = files.iter().map(|file| file.as_bytes()).collect();
        assert_eq!(load(&files, &[]), Ok(Settings::default()), "{files:?}");
    }
}

#[test]
fn the_default_file_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/mcpscope.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(load(&[text.as_bytes()], &[]), Ok(Settings::default()));

    fn paths(value: &Value, above: &str) -> BTreeSet<String> {
        let Value::Mapping(map) = value else { return BTreeSet::from([above.to_owned()]) };
        map.iter().flat_map(|(key, value)| paths(value, &format!("{above}/{}", key.as_str().unwrap()))).collect()
    }
    let named = paths(&serde_yaml::from_str(&text).unwrap(), "");
    assert_eq!(named, paths(&serde_yaml::to_value(Settings::default()).unwrap(), ""), "the file names every key");

    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        let is_section = !pair[1].starts_with(' ') && pair[1].ends_with(':');
        let is_key = pair[1].contains(": ") && !pair[1].trim_start().starts_with('#');
        assert!(is_section || !is_key || pair[0].trim_start().starts_with("# "), "no comment above {:?}", pair[1]);
    }
}

#[test]
fn defaults_are_those_of_the_specification() {
    let Settings {
        observability_enabled,
        tracing,
        metrics,
        instrumentation,
        chaos,
        dashboard,
        grpc,
        probe,
        auth,
        otel,
        tls,
        proxy,
        supervision,
        servers,
    } = Settings::default();
    assert!(observability_enabled && tracing.enabled && metrics.enabled && dashboard.enabled);
    assert_eq!((chaos.enabled, chaos.mode, chaos.file), (true, ChaosMode::Manual, "chaos.yaml".into()));
    assert_eq!(auth.chaos_token_file, None);
    assert_eq!((otel.enabled, &*otel.service_name, &*otel.sampling), (None, "mcpscope", "always_on"));
    assert_eq!(otel.exporters, ["otlp"]);
    assert_eq!((tracing.max_traces, tracing.max_bytes, tracing.sampling_rate.get()), (1000, 4_194_304, 0.1));
    assert_eq!(tracing.critical_paths, ["json_rpc", "session_manager", "registry", "server"]);
    assert_eq!(tracing.call_timeout, Duration::from_secs(300));
    assert_eq!((metrics.aggregation_interval.as_secs(), metrics.retention.as_secs()), (10, 3600));
    assert_eq!((metrics.max_label_values, metrics.sampling_rate.get()), (256, 0.1));
    assert_eq!((metrics.critical_metrics, metrics.listen), (vec![], None));
    assert_eq!((dashboard.host.as_str(), dashboard.port), ("localhost", 8080));
    assert_eq!((dashboard.update_interval.as_secs(), dashboard.subscriber_timeout.as_secs()), (5, 30));
    assert_eq!((dashboard.max_connections, dashboard.max_traces, dashboard.max_metrics), (100, 100, 50));
    assert!(instrumentation.auto_instrument && grpc.enabled);
    let functions: Vec<String> = instrumentation.components.by_name().map(|(_, functions)| functions.join(" ")).into();
    let expected = [
        "handle_request",
        "create_session destroy_session",
        "register unregister list",
        "start_server stop_server",
        "send receive",
        "call_tool",
    ];
    assert_eq!(functions, expected);
    assert_eq!((grpc.listen.as_str(), probe.listen), ("127.0.0.1:50051", None));
    assert_eq!(proxy.max_message_bytes, 16_777_216);
    assert_eq!((proxy.queue_messages, proxy.queue_bytes), (1024, 67_108_864));
    assert_eq!((proxy.connect_timeout.as_secs(), proxy.header_timeout.as_secs()), (10, 10));
    assert_eq!(proxy.idle_session.as_secs(), 1800);
    assert_eq!((tls, proxy.upstream_ca_file), (Tls::default(), None));
    assert_eq!(servers, []);
    assert_eq!((supervision.restart, supervision.give_up), (None, 5));
    assert_eq!((supervision.backoff_min.as_millis(), supervision.backoff_max.as_secs()), (200, 30));
    assert_eq!((supervision.healthy_after.as_secs(), supervision.give_up_window.as_secs()), (60, 60));
    assert_eq!(supervision.start_timeout.as_secs(), 90);
    for list in [dashboard.allowed_hosts, dashboard.allowed_origins, proxy.allowed_hosts, proxy.allowed_origins] {
        assert!(list.is_empty());
    }
}

#[test]
fn later_layers_override_key_by_key() {
    let first = b"tracing: { max_traces: 1, max_bytes: 1KiB, critical_paths: [tools] }\ndashboard: { port: 1 }\n";
    let second = b"tracing: { max_traces: 2, critical_paths: [server] }\ndashboard: { port: 2 }\n";
    let settings = load(&[first, second], &[("MCPSCOPE_TRACING_MAX_TRACES", "3")]).unwrap();
    let mut expected = Settings::default();
    expected.tracing.max_traces = 3;
    expected.tracing.max_bytes = 1024;
    expected.tracing.critical_paths = vec!["server".to_owned()];
    expected.dashboard.port = 2;
    assert_eq!(settings, expected);
}

#[test]
fn every_kind_of_value() {
    let file = b"
observability_enabled: false
tracing: { max_traces: 0x10, max_bytes: 1.5 KiB, sampling_rate: 1, critical_paths: [], call_timeout: 1500 }
metrics: { aggregation_interval: 1s 500ms, retention: 365d, sampling_rate: 0, listen: '[::]:9464' }
dashboard: { host: '::1', port: 0, allowed_hosts: [a_b.example, 10.0.0.7, '::2'] }
otel: { enabled: true, service_name: 'a b', exporters: [console, otlp], sampling: parentbased_traceidratio:0.25 }
tls: { cert_file: a.pem, key_file: /b c.pem, client_ca_file: null }
proxy: { upstream_ca_file: '', max_message: 100, allowed_origins: ['https://x.example', 'http://x.example:8080', 'vscode-webview://abc', 'http://[::2]:1'] }
";
    let settings = load(&[file], &[]).unwrap();
    assert!(!settings.observability_enabled);
    assert_eq!((settings.tracing.max_traces, settings.tracing.max_bytes), (16, 1536));
    assert_eq!(settings.tracing.sampling_rate, Ratio::try_new(1.0).unwrap());
    assert_eq!(settings.tracing.critical_paths, [""; 0]);
    assert_eq!(settings.tracing.call_timeout, Duration::from_millis(1500));
    assert_eq!(settings.metrics.aggregation_interval, Duration::from_millis(1500));
    assert_eq!((settings.metrics.sampling_rate.get(), settings.metrics.listen.as_deref()), (0.0, Some("[::]:9464")));
    assert_eq!((settings.dashboard.host.as_str(), settings.dashboard.port), ("::1", 0));
    assert_eq!(settings.dashboard.allowed_hosts, ["a_b.example", "10.0.0.7", "::2"]);
    assert_eq!((settings.otel.enabled, settings.otel.service_name.as_str()), (Some(true), "a b"));
    assert_eq!(settings.otel.exporters, ["console", "otlp"]);
    assert_eq!(settings.otel.sampling, "parentbased_traceidratio:0.25");
    for (text, restart) in [("auto", None), ("never", Some(Restart::Never)), ("on-failure", Some(Restart::OnFailure))] {
        let variable = ("MCPSCOPE_SUPERVISION_RESTART", text);
        assert_eq!(load(&[file], &[variable]).unwrap().supervision.restart, restart);
    }
    for (text, enabled) in [("auto", None), ("true", Some(true)), ("false", Some(false))] {
        let variable = ("MCPSCOPE_OTEL_ENABLED", text);
        assert_eq!(load(&[file], &[variable]).unwrap().otel.enabled, enabled);
        assert_eq!(load(&[], &[variable, ("MCPSCOPE_OTEL_EXPORTERS", "")]).unwrap().otel.enabled, enabled);
    }
    let Tls { cert_file, key_file, client_ca_file } = settings.tls;
    let paths = [cert_file, key_file, client_ca_file, settings.proxy.upstream_ca_file];
    assert_eq!(
        paths.each_ref().map(Option::as_deref),
        [Some(Path::new("a.pem")), Some(Path::new("/b c.pem")), None, None]
    );
    assert_eq!(settings.proxy.max_message_bytes, 100);
    assert_eq!(settings.proxy.allowed_origins.len(), 4);
}

#[test]
fn what_is_no_host_and_no_origin() {
    let long = "a".repeat(64);
    for host in
        ["", "*", "a..b", ".", "-:", "a b", "256.1.1.1", "1.2.3", "[::1]", "::g", "b\u{fc}cher.example", "u@h", &long]
    {
        load(&[], &[("MCPSCOPE_DASHBOARD_HOST", host)]).unwrap_err();
    }
    for address in ["127.0.0.1:0", "localhost:1", "[::1]:50051", "pod.example:65535"] {
        load(&[], &[("MCPSCOPE_GRPC_LISTEN", address), ("MCPSCOPE_PROBE_LISTEN", address)]).unwrap();
        let settings = load(&[], &[("MCPSCOPE_METRICS_LISTEN", address)]).unwrap();
        assert_eq!(settings.metrics.listen.as_deref(), Some(address));
    }
    load(&[], &[("MCPSCOPE_PROBE_LISTEN", "null"), ("MCPSCOPE_METRICS_LISTEN", "null")]).unwrap();
    for address in ["", "8080", "localhost", ":1", "localhost:", "::1:1", "[x]:1", "a b:1", "h:65536", "h:+1", "null"] {
        load(&[], &[("MCPSCOPE_GRPC_LISTEN", address)]).unwrap_err();
    }
    for origin in [
        "null",
        "*",
        "x.example",
        "https://",
        "https://x.example/",
        "https://x.example:443",
        "http://u@x.example",
        "http://x.example?q",
        "http://*.example",
        "file:///etc",
        "data:text",
        "http://x.example:99999",
    ] {
        load(&[], &[("MCPSCOPE_PROXY_ALLOWED_ORIGINS", origin)]).unwrap_err();
    }
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let tree = Tree::<Settings>::new();
    let leaves = tree.leaves();
    assert_eq!(leaves.len(), 62);
    let names: BTreeSet<String> = leaves.iter().map(|path| variable(path)).collect();
    assert_eq!(names.len(), leaves.len(), "{names:?}");
    for path in &leaves {
        // The default as text is accepted, so each kind of value can be written in a variable.
        let text = match tree.get(path).unwrap() {
            Value::Sequence(list) => list.iter().map(|value| value.as_str().unwrap()).collect::<Vec<_>>().join(","),
            value => serde_yaml::to_string(value).unwrap().trim_end().trim_matches('\'').to_owned(),
        };
        assert_eq!(load(&[], &[(&variable(path), &text)]), Ok(Settings::default()), "{path}={text}");
    }
    let settings = load(&[], &[("MCPSCOPE_METRICS_RETENTION", "20000"), ("MCPSCOPE_PROXY_MAX_MESSAGE", "5")]).unwrap();
    assert_eq!((settings.metrics.retention.as_secs(), settings.proxy.max_message_bytes), (20, 5), "bare numbers");
}

#[test]
fn what_two_configurations_differ_in() {
    let one = load(&[b"tracing: { max_traces: 5 }\nproxy: { max_message: 1KiB }\n"], &[]).unwrap();
    let other = load(
        &[b"dashboard: { port: 1 }\nproxy: { max_message: 1024 }\nservers: [{ name: a, upstream: 'http://a', listen: 'a:1' }]\n"],
        &[],
    )
    .unwrap();
    assert_eq!(one.differences(&one), [""; 0]);
    let expected = ["dashboard.port", "servers", "tracing.max_traces"];
    assert_eq!(
        (one.differences(&other), other.differences(&one)),
        (expected.map(str::to_owned).into(), expected.map(str::to_owned).into())
    );
}

#[test]
fn later_keys_are_not_known_yet() {
    let tree = Tree::<Settings>::new();
    for path in Settings::LATER {
        assert!(tree.get(path).is_none(), "{path} is available now: strike it from the list");
    }
}

#[test]
fn the_environment_of_the_process() {
    // Nothing may be set here, since tests share the process; but what there is must be ours.
    assert!(environment(&[]).iter().all(|(name, _)| name.starts_with("MCPSCOPE_")));
}

#[test]
fn ratios() {
    for ratio in [0.0, 0.5, 1.0] {
        assert_eq!(Ratio::try_new(ratio).unwrap().get(), ratio);
    }
    for ratio in [-0.1, 1.1, f64::INFINITY] {
        assert_eq!(Ratio::try_new(ratio), Err(InvalidRatio(ratio)));
    }
    Ratio::try_new(f64::NAN).unwrap_err();
}
