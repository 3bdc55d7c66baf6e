//! The JSON names of enums: the last word of the protobuf name, in lower case.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde::{Serialize, Serializer};

use crate::proto::{
    ChaosCause, ChaosCauseKind, ChaosChildRole, ChaosChildRoleKind, ChaosMode, ChaosStartedBy, ChaosTestStatus,
    ChaosUnit, HealthState, SpanKind, TraceStatus,
};

pub(crate) fn health_state<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(HealthState::try_from(*value).unwrap_or_default().as_str_name(), "HEALTH_STATE_"))
}

pub(crate) fn trace_status<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(TraceStatus::try_from(*value).unwrap_or_default().as_str_name(), "TRACE_STATUS_"))
}

pub(crate) fn span_kind<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(SpanKind::try_from(*value).unwrap_or_default().as_str_name(), "SPAN_KIND_"))
}

pub(crate) fn chaos_mode<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(ChaosMode::try_from(*value).unwrap_or_default().as_str_name(), "CHAOS_MODE_"))
}

pub(crate) fn chaos_test_status<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(ChaosTestStatus::try_from(*value).unwrap_or_default().as_str_name(), "CHAOS_TEST_STATUS_"))
}

pub(crate) fn chaos_started_by<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(ChaosStartedBy::try_from(*value).unwrap_or_default().as_str_name(), "CHAOS_STARTED_BY_"))
}

pub(crate) fn chaos_unit<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(ChaosUnit::try_from(*value).unwrap_or_default().as_str_name(), "CHAOS_UNIT_"))
}

pub(crate) fn chaos_cause_kind<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&cause_name(ChaosCauseKind::try_from(*value).unwrap_or_default()))
}

/// The name of its kind, or an object of that name and what it is about.
pub(crate) fn chaos_cause<S: Serializer>(value: &Option<ChaosCause>, to: S) -> Result<S::Ok, S::Error> {
    let Some(cause) = value else { return to.serialize_none() };
    let name = cause_name(cause.kind());
    match cause.kind() {
        ChaosCauseKind::Alert | ChaosCauseKind::Leak => to.collect_map([(name, &cause.about)]),
        _ => to.serialize_str(&name),
    }
}

fn cause_name(kind: ChaosCauseKind) -> String {
    short(kind.as_str_name(), "CHAOS_CAUSE_KIND_")
}

pub(crate) fn chaos_child_role_kind<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&role_name(ChaosChildRoleKind::try_from(*value).unwrap_or_default()))
}

/// The name of its kind, or an object of that name and the experiment.
pub(crate) fn chaos_child_role<S: Serializer>(value: &Option<ChaosChildRole>, to: S) -> Result<S::Ok, S::Error> {
    let Some(role) = value else { return to.serialize_none() };
    let name = role_name(role.kind());
    match role.kind() {
        ChaosChildRoleKind::Helper => to.collect_map([(name, role.experiment)]),
        _ => to.serialize_str(&name),
    }
}

fn role_name(kind: ChaosChildRoleKind) -> String {
    short(kind.as_str_name(), "CHAOS_CHILD_ROLE_KIND_")
}

/// An object, also where there is none.
pub(crate) fn parameters<S: Serializer>(value: &Option<Struct>, to: S) -> Result<S::Ok, S::Error> {
    let fields = value.iter().flat_map(|parameters| &parameters.fields);
    to.collect_map(fields.map(|(name, value)| (name, Json(value))))
}

struct Json<'a>(&'a Value);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0.kind {
            None | Some(Kind::NullValue(_)) => to.serialize_unit(),
            Some(Kind::BoolValue(value)) => to.serialize_bool(*value),
            // A whole number is one, as it was given.
            Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
                to.serialize_i64(*value as i64)
            }
            Some(Kind::NumberValue(value)) => to.serialize_f64(*value),
            Some(Kind::StringValue(value)) => to.serialize_str(value),
            Some(Kind::ListValue(list)) => to.collect_seq(list.values.iter().map(Json)),
            Some(Kind::StructValue(object)) => {
                to.collect_map(object.fields.iter().map(|(name, value)| (name, Json(value))))
            }
        }
    }
}

fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}
