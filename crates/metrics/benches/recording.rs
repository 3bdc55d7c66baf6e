//! What recording and rendering cost.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use mcpscope_core::{ClockAnchor, Component};
use mcpscope_metrics::{Config, Metrics};

fn recording(c: &mut Criterion) {
    let start = Instant::now();
    let metrics = Metrics::new(&Config::default(), ClockAnchor { mono: start, wall: SystemTime::now() });
    let counter = metrics.component_operations(Component::Tools, false);
    c.bench_function("counter, handle", |b| b.iter(|| black_box(&counter).increment(start)));
    let histogram = metrics.tool_calls("s", "echo", "ok", false);
    c.bench_function("histogram with raw record, handle", |b| {
        b.iter(|| black_box(&histogram).record(black_box(Duration::from_micros(1234)), start));
    });
    c.bench_function("resolve a handle by four labels", |b| {
        b.iter(|| metrics.tool_calls(black_box("s"), black_box("echo"), "ok", false));
    });
}

fn rendering(c: &mut Criterion) {
    let start = Instant::now();
    let metrics = Metrics::new(
        &Config { max_label_values: 1000, ..Config::default() },
        ClockAnchor { mono: start, wall: SystemTime::now() },
    );
    for n in 0..1000 {
        metrics.tool_calls("s", &format!("tool{n}"), "ok", false).record(Duration::from_millis(n), start);
    }
    c.bench_function("snapshot of 1,000 histograms", |b| b.iter(|| metrics.snapshot(start)));
    let snapshot = metrics.snapshot(start);
    c.bench_function("text of 1,000 histograms", |b| b.iter(|| snapshot.to_prometheus()));
}

criterion_group!(benches, recording, rendering);
criterion_main!(benches);
