//! The JSON names of enums: the last word of the protobuf name, in lower case.

use serde::Serializer;

use crate::proto::{HealthState, SpanKind, TraceStatus};

pub(crate) fn health_state<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(HealthState::try_from(*value).unwrap_or_default().as_str_name(), "HEALTH_STATE_"))
}

pub(crate) fn trace_status<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(TraceStatus::try_from(*value).unwrap_or_default().as_str_name(), "TRACE_STATUS_"))
}

pub(crate) fn span_kind<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(SpanKind::try_from(*value).unwrap_or_default().as_str_name(), "SPAN_KIND_"))
}

fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}
