//! The standard variables, one by one.

use std::path::Path;

use super::*;

fn read(settings: &Settings, variables: &[(&str, &str)]) -> (Config, Vec<String>) {
    let service = Service { version: "1.2.3".to_owned(), instance_id: "i".to_owned() };
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let (config, warnings) = Config::read(settings, &service, variables);
    (config, warnings.iter().map(ToString::to_string).collect())
}

const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:1234");

/// What the variables give with a collector, and without a warning.
#[track_caller]
fn given(variables: &[(&str, &str)]) -> Config {
    let (config, warnings) = read(&Settings::default(), &[&[COLLECTOR], variables].concat());
    assert_eq!(warnings, [""; 0], "{variables:?}");
    config
}

#[track_caller]
fn traces(variables: &[(&str, &str)]) -> Traces {
    given(variables).traces.expect("traces are exported")
}

#[track_caller]
fn endpoint(variables: &[(&str, &str)]) -> Endpoint {
    traces(variables).otlp.expect("there is a collector")
}

#[track_caller]
fn metrics(variables: &[(&str, &str)]) -> Metrics {
    given(variables).metrics.expect("metrics are exported")
}

#[test]
fn the_standard_defaults() {
    let config = given(&[]);
    let (traces, metrics) = (config.traces.clone().unwrap(), config.metrics.clone().unwrap());
    assert_eq!(
        config.destinations(),
        [
            "traces to http://collector:1234/v1/traces (http/protobuf)",
            "metrics to http://collector:1234/v1/metrics (http/protobuf) every 1m",
        ]
    );
    assert_eq!((traces.schedule_delay.as_millis(), traces.export_timeout.as_millis()), (5_000, 30_000));
    assert_eq!((traces.max_queue_spans, traces.max_batch_spans, traces.max_queue_bytes()), (2048, 512, 2 << 20));
    assert_eq!((metrics.interval.as_millis(), metrics.export_timeout.as_millis()), (60_000, 30_000));
    assert_eq!(traces.sampler, Sampler { share: Ratio::ONE, parent_based: false });
    let otlp = traces.otlp.unwrap();
    assert_eq!(
        (otlp.timeout.as_millis(), otlp.gzip, otlp.headers.0.len(), otlp.tls),
        (10_000, false, 0, Tls::default())
    );
    assert_eq!(config.propagators, Propagators { trace_context: true, baggage: true });
}

#[test]
fn each_variable_does_what_it_says() {
    let millis = |variable| traces(&[(variable, "1500")]);
    assert_eq!(millis("OTEL_BSP_SCHEDULE_DELAY").schedule_delay.as_millis(), 1500);
    assert_eq!(millis("OTEL_BSP_EXPORT_TIMEOUT").export_timeout.as_millis(), 1500);
    assert_eq!(millis("OTEL_EXPORTER_OTLP_TIMEOUT").otlp.unwrap().timeout.as_millis(), 1500);
    assert_eq!(metrics(&[("OTEL_METRIC_EXPORT_INTERVAL", "1500")]).interval.as_millis(), 1500);
    assert_eq!(metrics(&[("OTEL_METRIC_EXPORT_TIMEOUT", "1500")]).export_timeout.as_millis(), 1500);
    let queue = traces(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "200")]);
    assert_eq!((queue.max_queue_spans, queue.max_batch_spans), (100, 100), "a batch is never more than the queue");

    assert!(endpoint(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP")]).gzip);
    assert!(!endpoint(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "none")]).gzip);
    let headers = endpoint(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=1, Authorization=Basic%20eA==")]).headers;
    assert_eq!((&headers.0["a"], &headers.0["authorization"]), (&"1".parse().unwrap(), &"Basic eA==".parse().unwrap()));
    assert_eq!(format!("{headers:?}"), r#"["a", "authorization"]"#);
    let tls = endpoint(&[
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/me.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
    ])
    .tls;
    assert_eq!(tls.certificate.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(tls.client, Some(("/me.pem".into(), "/key.pem".into())));

    for (sampler, argument, share, parent_based) in [
        ("always_on", "", 1.0, false),
        ("always_off", "", 0.0, false),
        ("traceidratio", "0.25", 0.25, false),
        ("traceidratio", "", 1.0, false),
        ("parentbased_always_on", "", 1.0, true),
        ("parentbased_always_off", "", 0.0, true),
        ("ParentBased_TraceIdRatio", "0.5", 0.5, true),
    ] {
        let variables = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        let expected = Sampler { share: Ratio::new(share).unwrap(), parent_based };
        assert_eq!(traces(&variables).sampler, expected, "{sampler}");
    }
    for (propagators, trace_context, baggage) in [
        ("tracecontext", true, false),
        ("baggage", false, true),
        ("none", false, false),
        ("baggage,tracecontext", true, true),
    ] {
        let expected = Propagators { trace_context, baggage };
        assert_eq!(given(&[("OTEL_PROPAGATORS", propagators)]).propagators, expected, "{propagators}");
    }
}

#[test]
fn a_signals_own_variable_goes_before_that_for_all() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:1/as/it/is"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "for=all"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "for=traces"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "7"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces.pem"),
    ];
    let (traces, metrics) = (endpoint(&variables), metrics(&variables).otlp);
    assert_eq!(traces.to_string(), "https://traces:1/as/it/is (http/protobuf)");
    assert_eq!(metrics.to_string(), "http://collector:1234 (grpc)");
    assert_eq!([&traces.headers.0["for"], &metrics.headers.0["for"]], ["traces", "all"]);
    assert_eq!([traces.timeout.as_millis(), metrics.timeout.as_millis()], [10_000, 7]);
    assert_eq!([traces.gzip, metrics.gzip], [false, true]);
    assert_eq!([traces.tls.certificate.is_some(), metrics.tls.certificate.is_some()], [true, false]);
}

#[test]
fn where_an_endpoint_leads() {
    for (protocol, text, insecure, expected) in [
        ("http/protobuf", "http://h:1", "", "http://h:1/v1/traces (http/protobuf)"),
        ("http/protobuf", "http://h:1/", "", "http://h:1/v1/traces (http/protobuf)"),
        ("http/protobuf", "http://h:1/otlp/", "true", "http://h:1/otlp/v1/traces (http/protobuf)"),
        ("", "https://user:secret@[::1]/otlp?key=secret", "", "https://[::1]/otlp/v1/traces (http/protobuf)"),
        ("grpc", "http://h:1/ignored", "", "http://h:1 (grpc)"),
        ("grpc", "https://h", "true", "https://h (grpc)"),
        ("grpc", "h:4317", "true", "http://h:4317 (grpc)"),
        ("GRPC", "h:4317", "", "https://h:4317 (grpc)"),
    ] {
        let variables = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", text),
            ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
        ];
        let (config, warnings) = read(&Settings::default(), &variables);
        assert_eq!(config.traces.unwrap().otlp.unwrap().to_string(), expected, "{text}");
        assert_eq!(warnings, [""; 0], "{text}");
    }
    let on = Settings { enabled: Enabled::On, ..Settings::default() };
    for (protocol, expected) in [("", "http://localhost:4318/v1/traces"), ("grpc", "http://localhost:4317")] {
        let traces = read(&on, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]).0.traces.unwrap();
        let to = traces.destination();
        assert!(to.full.starts_with(&format!("{expected} ")), "{to:?}");
    }
}

#[test]
fn what_is_on() {
    let settings =
        |enabled, exporters: &[Exporter]| Settings { enabled, exporters: exporters.to_vec(), ..Settings::default() };
    let otlp = || settings(Enabled::Auto, &[Exporter::Otlp]);
    let on = |exporters: &[Exporter]| settings(Enabled::On, exporters);
    let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:1");
    for (settings, variables, traces, metrics) in [
        (otlp(), &[][..], "", false),
        (otlp(), &[COLLECTOR], "otlp", true),
        (otlp(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "  ")], "", false),
        (otlp(), &[own], "", true),
        (otlp(), &[COLLECTOR, ("OTEL_SDK_DISABLED", "True")], "", false),
        (otlp(), &[COLLECTOR, ("OTEL_SDK_DISABLED", "false")], "otlp", true),
        (otlp(), &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")], "", true),
        (otlp(), &[COLLECTOR, ("OTEL_METRICS_EXPORTER", "none")], "otlp", false),
        (otlp(), &[COLLECTOR, ("OTEL_METRICS_EXPORTER", "prometheus")], "otlp", false),
        (otlp(), &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "console, otlp")], "otlp console", true),
        // Whoever chooses an exporter wants it.
        (otlp(), &[("OTEL_TRACES_EXPORTER", "console")], "console", false),
        (otlp(), &[("OTEL_METRICS_EXPORTER", "otlp")], "", true),
        (on(&[Exporter::Otlp]), &[], "otlp", true),
        (on(&[Exporter::Console]), &[], "console", false),
        (on(&[]), &[], "", false),
        (on(&[]), &[("OTEL_TRACES_EXPORTER", "otlp")], "otlp", false),
        (on(&[Exporter::Otlp]), &[("OTEL_SDK_DISABLED", "true")], "", false),
        // The one thing that beats the variables.
        (settings(Enabled::Off, &[Exporter::Otlp]), &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "otlp")], "", false),
    ] {
        let (config, warnings) = read(&settings, variables);
        let found = config.traces.as_ref().map_or_else(String::new, |traces| {
            let console = traces.console.then_some("console");
            traces.otlp.as_ref().map(|_| "otlp").into_iter().chain(console).collect::<Vec<_>>().join(" ")
        });
        assert_eq!((&*found, config.metrics.is_some()), (traces, metrics), "{settings:?} {variables:?}");
        assert_eq!((config.exports_traces(), config.is_on()), (!traces.is_empty(), !traces.is_empty() || metrics));
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn a_signals_own_variable_that_makes_no_sense_is_as_good_as_none() {
    let own = |what: &str, bad: &str, all: &str| {
        let [own, both] = ["TRACES_", ""].map(|signal| format!("OTEL_EXPORTER_OTLP_{signal}{what}"));
        let (config, warnings) = read(&Settings::default(), &[COLLECTOR, (&own, bad), (&both, all)]);
        assert!(warnings.len() == 1 && warnings[0].starts_with(&format!("{own} is passed over")), "{warnings:?}");
        let (without, _) = read(&Settings::default(), &[COLLECTOR, (&both, all)]);
        assert_eq!(config, without, "{own}");
        config.traces.unwrap().otlp.unwrap()
    };
    assert_eq!(own("PROTOCOL", "http/json", "grpc").protocol, Protocol::Grpc);
    assert_eq!(own("TIMEOUT", "3s", "3000").timeout.as_millis(), 3000);
    assert!(own("COMPRESSION", "zstd", "gzip").gzip);
    assert_eq!(own("HEADERS", "a", "for=all").headers.0["for"], "all");
    assert_eq!(own("HEADERS", "a:1=", "for=all").headers.0["for"], "all");
    let endpoint = own("ENDPOINT", "h:4318/v1/traces", "http://all:1");
    assert_eq!(endpoint.to_string(), "http://all:1/v1/traces (http/protobuf)");
    // But what is not true is false.
    let insecure = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "h:1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "yes"),
    ];
    let (config, warnings) = read(&Settings::default(), &insecure);
    assert_eq!(config.destinations()[0], "traces to https://h:1 (grpc)");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn no_time_is_no_limit_for_what_is_waited_for() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]).timeout, YEAR);
    assert_eq!(traces(&[("OTEL_BSP_EXPORT_TIMEOUT", "0")]).export_timeout, YEAR);
    assert_eq!(metrics(&[("OTEL_METRIC_EXPORT_TIMEOUT", "0")]).export_timeout, YEAR);
    assert_eq!(traces(&[("OTEL_BSP_SCHEDULE_DELAY", "0")]).schedule_delay, Duration::ZERO);
}

#[test]
fn an_endpoint_that_is_none_leads_nowhere() {
    for (protocol, text, shown) in [
        ("grpc", "unix:/run/collector.sock", "unix:/run/collector.sock"),
        ("grpc", "unix:///run/collector.sock", "unix:///run/collector.sock"),
        ("grpc", "unix:collector.sock", "unix:collector.sock"),
        ("grpc", "unix-abstract:collector", "unix-abstract:collector"),
        ("grpc", "h:port", "h:port"),
        ("grpc", "http://user:secret@", "http://***@"),
        ("http/protobuf", "http://h:", "http://h:"),
        ("http/protobuf", "localhost:4318", "localhost:4318"),
        ("http/protobuf", "http://user:secret@h:99999/", "http://***@h:99999/"),
        ("http/protobuf", "user:se?cret@h/?key=secret", "***@h/?***"),
        ("http/protobuf", "secret@://h/#secret", "***://h/?***"),
        ("http/protobuf", "unix:/run/collector.sock", "unix:/run/collector.sock"),
    ] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", text), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let (config, warnings) = read(&Settings::default(), &variables);
        let expected = match protocol {
            "grpc" => "http://HOST:PORT, https://HOST:PORT or HOST:PORT, and no unix: socket",
            _ => "http://HOST:PORT/PATH or https://HOST:PORT/PATH",
        };
        assert!(!config.is_on(), "{text}");
        let told = format!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is passed over: expected {expected}, found \"{shown}\"; traces and metrics are not \
             exported"
        );
        assert_eq!(warnings, [told], "{text}");
    }
}

#[test]
fn what_becomes_of_a_signal_whose_endpoint_is_passed_over_is_told() {
    let (all, own) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let on = Settings { enabled: Enabled::On, ..Settings::default() };
    let here = |path| format!("http://localhost:4318/v1/{path} (http/protobuf)");
    let by_default = format!("traces go to {}, metrics go to {}", here("traces"), here("metrics"));
    for (settings, variables, expected) in [
        (Settings::default(), &[(own, "h:1")][..], "traces are not exported"),
        (
            Settings::default(),
            &[(all, "h:1"), ("OTEL_TRACES_EXPORTER", "console")],
            "traces go to the console, metrics are not exported",
        ),
        (
            Settings::default(),
            &[COLLECTOR, (own, "h:1")],
            "traces go to http://collector:1234/v1/traces (http/protobuf)",
        ),
        (on, &[(all, "h:1")], &by_default),
    ] {
        let (_, warnings) = read(&settings, variables);
        let told = warnings[0].split_once("found \"h:1\"; ").map(|(_, told)| told);
        assert_eq!((told, warnings.len()), (Some(expected), 1), "{variables:?}: {warnings:?}");
    }
}

#[test]
fn nothing_secret_is_shown() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:hunter2@h:1/?api_key=hunter2");
    let (config, _) = read(&Settings::default(), &[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2")]);
    let shown = format!("{config:?} {config:#?} {:?}", config.destinations());
    assert!(shown.contains("https://h:1/v1/traces (http/protobuf)") && !shown.contains("hunter2"), "{shown}");
}

const NO_HEADER: &str = "expected name=value,name=value, found a name that no header can have";

#[test]
fn what_makes_no_sense_is_told_and_passed_over() {
    for (variable, value, expected) in [
        ("OTEL_SDK_DISABLED", "yes", r#"expected true or false, found "yes""#),
        ("OTEL_TRACES_EXPORTER", "zipkin", r#"expected otlp, console or none, found "zipkin""#),
        (
            "OTEL_METRICS_EXPORTER",
            "console",
            r#"expected otlp or none; all metrics are at /metrics too, found "console""#,
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", r#"expected grpc or http/protobuf, found "http/json""#),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", r#"expected gzip or none, found "zstd""#),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", r#"expected a number of milliseconds from 0, found "10s""#),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", r#"expected a number of milliseconds from 0, found "-1""#),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", r#"expected a number of milliseconds from 0, found "-1""#),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", r#"expected a number of milliseconds from 1, found "0""#),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", r#"expected a whole number from 1 to 10000000, found "many""#),
        ("OTEL_PROPAGATORS", "b3", r#"expected tracecontext, baggage or none, found "b3""#),
        (
            "OTEL_TRACES_SAMPLER",
            "jaeger_remote",
            r#"expected always_on, always_off, traceidratio, or one of them after parentbased_, found "jaeger_remote""#,
        ),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem", "expected OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE beside it"),
        // Nothing that could be a secret.
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization", "expected name=value,name=value with percent-encoded values"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%0Asecret",
            "expected headers, found authorization with a value that no header can have",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Basic c2VjcmV0==", NO_HEADER),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer secret,SEC/RET==", NO_HEADER),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/me.pem", "expected OTEL_EXPORTER_OTLP_CLIENT_KEY beside it"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b", "expected name=value,name=value with percent-encoded values"),
    ] {
        let (config, warnings) = read(&Settings::default(), &[COLLECTOR, (variable, value)]);
        assert_eq!(warnings, [format!("{variable} is passed over: {expected}")]);
        let (without, _) = read(&Settings::default(), &[COLLECTOR]);
        assert_eq!(config, without, "{variable} changes something");
    }
    let (config, warnings) = read(&Settings::default(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "user:secret@nowhere")]);
    assert!(!config.is_on());
    assert!(warnings.len() == 1 && !warnings[0].contains("secret"), "{warnings:?}");
    let sampler = [COLLECTOR, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
    let (config, warnings) = read(&Settings::default(), &sampler);
    assert_eq!(config.traces.unwrap().sampler.share, Ratio::ONE);
    assert_eq!(warnings, [r#"OTEL_TRACES_SAMPLER_ARG is passed over: expected a number from 0 to 1, found "2""#]);
    // What is known of a list is taken.
    let (config, warnings) = read(&Settings::default(), &[("OTEL_TRACES_EXPORTER", "otlp,zipkin")]);
    assert!(config.exports_traces());
    assert_eq!(warnings.len(), 1);
}

#[test]
fn who_exports() {
    let attributes = |variables: &[(&str, &str)]| {
        let resource = given(variables).resource;
        let text = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| {
            use opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue;
            match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(StringValue(text)) => format!("{}={text}", pair.key),
                other => panic!("{other:?}"),
            }
        };
        resource.attributes.iter().map(text).collect::<Vec<_>>()
    };
    let version = env!("CARGO_PKG_VERSION");
    let ours = |start: &[&str]| {
        let sdk =
            ["telemetry.sdk.name=mcpscope", "telemetry.sdk.language=rust", &format!("telemetry.sdk.version={version}")];
        [start, &sdk].concat().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(attributes(&[]), ours(&["service.name=mcpscope", "service.version=1.2.3", "service.instance.id=i"]));
    let given = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,deployment.environment.name=a%2Cb, team = x ");
    let rest = ["service.version=1.2.3", "service.instance.id=i", "deployment.environment.name=a,b", "team=x"];
    assert_eq!(attributes(&[given]), ours(&[&["service.name=theirs"][..], &rest].concat()));
    let named = attributes(&[given, ("OTEL_SERVICE_NAME", "named")]);
    assert_eq!(named, ours(&[&["service.name=named"][..], &rest].concat()));
}

#[test]
fn samplers_of_our_own_configuration() {
    for (text, share, parent_based) in [
        ("always_on", 1.0, false),
        ("parentbased_always_off", 0.0, true),
        ("traceidratio:0.1", 0.1, false),
        ("parentbased_traceidratio:1", 1.0, true),
    ] {
        assert_eq!(parse_sampler(text), Ok(Sampler { share: Ratio::new(share).unwrap(), parent_based }));
    }
    for bad in [
        "",
        "on",
        "traceidratio",
        "traceidratio:",
        "traceidratio:1.1",
        "always_on:1",
        "parentbased_parentbased_always_on",
    ] {
        assert_eq!(parse_sampler(bad), Err(InvalidSampler(bad.to_owned())));
    }
}
