//! What passed lately: what tells what an experiment would hit.

use std::time::Duration;

use mcpscope_chaos::{MessageKind, Traffic};
use mcpscope_core::{Direction, Labels, Protocol, Transport};
use mcpscope_metrics::{Desc, Metrics, Value, desc};

use crate::{Core, now};

/// How far it is looked back.
const LOOK_BACK: Duration = Duration::from_secs(60);

/// What passed in the last minute, as far as windows that are closed tell; before there are any, since the start.
pub(super) fn traffic(core: &Core) -> Vec<Traffic> {
    let Some(metrics) = &core.sources.metrics else { return Vec::new() };
    let mut rows: Vec<Traffic> = Vec::new();
    let mut add = |row: Traffic| {
        let is_alike = |other: &&mut Traffic| Traffic { per_second: row.per_second, ..(*other).clone() } == row;
        match rows.iter_mut().find(is_alike) {
            Some(alike) => alike.per_second += row.per_second,
            None => rows.push(row),
        }
    };
    let operations: [(Direction, &Desc); 2] =
        [(Direction::ToServer, &desc::SERVER_OPERATIONS), (Direction::ToClient, &desc::CLIENT_OPERATIONS)];
    for (direction, operations) in operations {
        for (labels, per_second) in rates(core, metrics, operations) {
            let request = request(direction, &labels, per_second);
            if request.kind == MessageKind::Request {
                add(Traffic { direction: direction.reverse(), kind: MessageKind::Response, ..request.clone() });
            }
            add(request);
        }
    }
    rows
}

/// How often operations happened in each second.
fn rates(core: &Core, metrics: &Metrics, operations: &Desc) -> Vec<(Labels, f64)> {
    let (at, anchor) = (now(), &core.sources.anchor);
    let windows = metrics.closed_windows();
    if windows.is_empty() {
        let seconds = at.saturating_duration_since(anchor.mono).as_secs_f64();
        let snapshot = metrics.snapshot(at);
        let counted = snapshot.series(operations).filter_map(|series| match &series.value {
            Value::Histogram(times) if seconds > 0.0 => Some((series.labels.clone(), times.count as f64 / seconds)),
            _ => None,
        });
        return counted.collect();
    }
    let is_recent = |start| anchor.wall_at(at).duration_since(start).is_ok_and(|ago| ago <= LOOK_BACK);
    let recent: Vec<_> = windows.iter().filter(|window| is_recent(window.start)).collect();
    let lasted = |window: &mcpscope_metrics::Window| window.end.duration_since(window.start).unwrap_or_default();
    let seconds: f64 = recent.iter().map(|window| lasted(window).as_secs_f64()).sum();
    let series = recent.iter().flat_map(|window| &window.series).filter(|series| *series.desc == *operations);
    series.map(|series| (series.labels.clone(), series.stats.count as f64 / seconds)).collect()
}

fn request(direction: Direction, labels: &Labels, per_second: f64) -> Traffic {
    let label = |name: &str| labels.get(name).filter(|value| !value.is_empty());
    let method = label("mcp_method_name").unwrap_or_default();
    let is_notification = method.starts_with("notifications/");
    Traffic {
        server: label("server").unwrap_or_default().to_owned(),
        transport: if label("network_transport") == Some("pipe") { Transport::Stdio } else { Transport::Http },
        direction,
        protocol: label("mcp_protocol_version").map(Protocol::parse),
        kind: if is_notification { MessageKind::Notification } else { MessageKind::Request },
        method: Some(method.to_owned()),
        tool: label("gen_ai_tool_name").map(str::to_owned),
        per_second,
    }
}
