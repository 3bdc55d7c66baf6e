//! Variables with mistakes.

use expect_test::{Expect, expect};

use super::load;
use crate::{ConfigErrors, Configuration};

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
fn check(variables: &[(&str, &str)], expected: Expect) {
    expected.assert_eq(&load(&[], variables).unwrap_err());
}

#[test]
fn every_error_at_once() {
    check(
        &[
            ("MCPSCOPE_TRACING_SAMPLING_RATE", "10%"),
            ("MCPSCOPE_OBSERVABILITY_ENABLED", "no"),
            ("MCPSCOPE_DASHBOARD_PORT", "99999"),
            ("MCPSCOPE_DASHBOARD_HOST", ""),
            ("MCPSCOPE_TRACING_MAX_TRACES", "-1"),
            ("MCPSCOPE_TRACING_MAX_TRACE", "1"),
            ("MCPSCOPE_PROXY_ALLOWED_HOSTS", "a.example, b.example:80"),
            ("MCPSCOPE_PROXY_MAX_MESSAGE", "{ a: b"),
            ("MCPSCOPE_CHAOS_MODE", "on"),
            ("MCPSCOPE_CHAOS_ENGINE_SEED", "-1"),
            ("MCPSCOPE_MONITORING_ENABLED", "false"),
            ("MCPSCOPE_SCENARIOS", "latency_injection"),
            ("MCPSCOPE_TRACING_CAPTURE", "off"),
            ("MCPSCOPE_CHAOSS", "off"),
            ("MCPSCOPE_TRACING", "off"),
            ("MCPSCOPE_METRICS_RETENTION", "5m\u{fffd}"),
            ("OTHER", "whatever"),
        ],
        expect![[r#"
            MCPSCOPE_CHAOSS: unknown variable, did you mean `MCPSCOPE_CHAOS_FILE`?
            MCPSCOPE_CHAOS_ENGINE_SEED: chaos_engine.seed: expected null, or a whole number from 0 to 9223372036854775807, found "-1"
            MCPSCOPE_CHAOS_MODE: chaos.mode: expected off, manual or scheduled, found "on"
            MCPSCOPE_DASHBOARD_HOST: dashboard.host: expected a host name or an IP address, without port or brackets, found ""
            MCPSCOPE_DASHBOARD_PORT: dashboard.port: expected a port from 0 (any free one) to 65535, found 99999
            MCPSCOPE_METRICS_RETENTION: metrics.retention: is not UTF-8
            MCPSCOPE_MONITORING_ENABLED: monitoring.enabled: not available in this version
            MCPSCOPE_OBSERVABILITY_ENABLED: observability_enabled: expected true or false, found "no"
            MCPSCOPE_PROXY_ALLOWED_HOSTS: proxy.allowed_hosts: expected a list of host names or IP addresses, without port or brackets, found "b.example:80"
            MCPSCOPE_PROXY_MAX_MESSAGE: proxy.max_message: expected a size from 1B to 1TiB such as 512KiB or 16MiB, or a number of bytes, found "{ a: b"
            MCPSCOPE_SCENARIOS: scenarios: expected a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and match where they are wanted, found "latency_injection"
            MCPSCOPE_TRACING: unknown variable, did you mean `MCPSCOPE_TRACING_ENABLED`?
            MCPSCOPE_TRACING_CAPTURE: not available in this version
            MCPSCOPE_TRACING_MAX_TRACE: unknown variable, did you mean `MCPSCOPE_TRACING_MAX_TRACES`?
            MCPSCOPE_TRACING_MAX_TRACES: tracing.max_traces: expected a whole number from 1 to 1000000, found -1
            MCPSCOPE_TRACING_SAMPLING_RATE: tracing.sampling_rate: expected a number from 0 to 1, found "10%""#]],
    );
}

#[test]
fn settings_at_odds() {
    check(
        &[("MCPSCOPE_METRICS_RETENTION", "1s")],
        expect![
            "MCPSCOPE_METRICS_RETENTION: metrics.retention: retention (1s) is shorter than aggregation_interval (10s)"
        ],
    );
}

#[test]
fn what_the_standard_variables_say() {
    check(
        &[
            ("MCPSCOPE_OTEL_ENDPOINT", "http://127.0.0.1:4318"),
            ("MCPSCOPE_OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
            ("MCPSCOPE_OTEL_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318"),
            ("MCPSCOPE_OTEL_PROPAGATORS", "none"),
            ("MCPSCOPE_OTEL_SAMPLING_RATE", "0.1"),
            ("MCPSCOPE_OTEL_TRACES", "on"),
        ],
        expect![[r#"
            MCPSCOPE_OTEL_ENDPOINT: unknown variable, set the environment variable `OTEL_EXPORTER_OTLP_ENDPOINT` instead
            MCPSCOPE_OTEL_EXPORTER_OTLP_HEADERS: unknown variable, set the environment variable `OTEL_EXPORTER_OTLP_HEADERS` instead
            MCPSCOPE_OTEL_OTLP_TRACES_ENDPOINT: unknown variable, set the environment variable `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` instead
            MCPSCOPE_OTEL_PROPAGATORS: unknown variable, set the environment variable `OTEL_PROPAGATORS` instead
            MCPSCOPE_OTEL_SAMPLING_RATE: unknown variable, did you mean `MCPSCOPE_OTEL_SAMPLING`?
            MCPSCOPE_OTEL_TRACES: unknown variable, did you mean `MCPSCOPE_OTEL_ENABLED`?"#]],
    );
}

#[test]
fn what_turns_out_to_be_wrong_later_has_its_place_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "tls:\n  cert_file: a.pem\n  key_file: b.pem\n").unwrap();
    let variables = [("MCPSCOPE_TLS_KEY_FILE".to_owned(), "c.pem".to_owned())];
    let Configuration { settings, places, .. } = Configuration::load(&[file.path().to_owned()], variables).unwrap();
    assert_eq!(settings.tls.key_file, Some("c.pem".into()));
    let refused = |key: &str| places.refuse(key, "is odd").map(|error| error.to_string());
    let place = format!("{}:2:14: tls.cert_file: is odd", file.path().display());
    assert_eq!(refused("tls.cert_file"), Some(place));
    assert_eq!(refused("tls.key_file"), Some("MCPSCOPE_TLS_KEY_FILE: tls.key_file: is odd".to_owned()));
    assert_eq!(refused("tls.client_ca_file"), None);
    assert!(ConfigErrors::none_of([]).is_ok());
    let both = ["tls.cert_file", "tls.key_file"].map(|key| places.refuse(key, "is odd").unwrap());
    assert_eq!(ConfigErrors::none_of(both).unwrap_err().to_string().lines().count(), 2);
}
