//! What is recorded, as OTLP has it.

mod metrics;
mod traces;

use std::time::SystemTime;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

pub(crate) use metrics::{Starts, points};
pub(crate) use traces::{attributes, spans};

/// Who exports.
pub(crate) fn resource(attributes: Vec<(String, String)>) -> Resource {
    let attributes = attributes.into_iter().map(|(name, value)| pair(name, Value::StringValue(value)));
    Resource { attributes: attributes.collect(), ..Resource::default() }
}

/// What recorded it.
fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "mcpscope".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn pair(key: impl Into<String>, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Nanoseconds since the epoch; 0 for what was before.
fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
