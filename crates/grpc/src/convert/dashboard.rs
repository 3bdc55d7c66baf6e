//! `dashboard.proto`.

use mcpscope_hub::Frame;

use super::{health, metrics, ms_since_epoch, whole_ms};
use crate::proto::Dashboard;

impl From<&Frame> for Dashboard {
    fn from(frame: &Frame) -> Self {
        let usage = frame.usage.as_ref();
        let shown = |shown| metrics(shown, frame.timestamp, frame.uptime, usage);
        Self {
            timestamp: ms_since_epoch(frame.timestamp),
            metrics: frame.metrics.as_ref().map(|metrics| shown(&metrics.shown)),
            traces: frame.traces.iter().map(|trace| (&**trace).into()).collect(),
            chaos_status: frame.chaos.as_ref().map(Into::into),
            system_health: Some(health(&frame.health, &frame.children)),
            active_connections: frame.active_connections,
            system_uptime: whole_ms(frame.uptime),
            memory_usage: usage.and_then(|usage| usage.resident_bytes),
            memory_ratio: usage.and_then(|usage| usage.memory_ratio),
            cpu_usage: usage.map(|usage| usage.cpu_ratio),
            processes: frame.children.iter().map(Into::into).collect(),
        }
    }
}
