//! The metrics' snapshot as OTLP metrics.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::SystemTime;

use mcpscope_core::Labels;
use mcpscope_metrics::{
    Desc, Exemplar, FamilySnapshot, HistogramSnapshot, Kind, SeriesSnapshot, Snapshot, Unit, Value,
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::{metrics::v1 as otlp, resource::v1::Resource};

use super::{nanos, pair, scope};

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;
/// What begins the names of the OpenTelemetry MCP conventions.
const CONVENTIONS: &str = "mcp_";
/// What begins the other names of ours, each a namespace.
const NAMESPACES: [&str; 2] = ["mcpscope_", "process_"];
/// Labels that are attributes of the conventions, which have dots where Prometheus cannot.
const ATTRIBUTES: [(&str, &str); 8] = [
    ("mcp_method_name", "mcp.method.name"),
    ("gen_ai_operation_name", "gen_ai.operation.name"),
    ("gen_ai_tool_name", "gen_ai.tool.name"),
    ("gen_ai_prompt_name", "gen_ai.prompt.name"),
    ("error_type", "error.type"),
    ("rpc_response_status_code", "rpc.response.status_code"),
    ("mcp_protocol_version", "mcp.protocol.version"),
    ("network_transport", "network.transport"),
];

/// How many data points a request of ours has.
pub(crate) fn points(request: &ExportMetricsServiceRequest) -> u64 {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    let points = scopes.flat_map(|scope| &scope.metrics).map(|metric| match &metric.data {
        Some(metric::Data::Sum(sum)) => sum.data_points.len(),
        Some(metric::Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(metric::Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    });
    points.sum::<usize>() as u64
}

/// Knows since when each series has been counted.
#[derive(Debug)]
pub(crate) struct Starts {
    /// By the number of the series, those that are not shown included: what comes back goes on.
    since: HashMap<u64, SystemTime>,
    /// When the last snapshot was taken; a series that was not in it has begun since.
    last: SystemTime,
}

impl Starts {
    /// For an instance that began at `began`.
    pub(crate) fn new(began: SystemTime) -> Self {
        Self { since: HashMap::new(), last: began }
    }

    /// The request that exports this snapshot, which was taken at `at`.
    pub(crate) fn request(
        &mut self,
        snapshot: &Snapshot,
        at: SystemTime,
        resource: &Resource,
    ) -> ExportMetricsServiceRequest {
        let numbers = snapshot.families.iter().flat_map(FamilySnapshot::numbers);
        self.since = numbers.map(|number| (number, self.since.get(&number).copied().unwrap_or(self.last))).collect();
        self.last = at;
        let families = snapshot.families.iter().filter(|family| !family.series.is_empty());
        let metrics = families.map(|family| self.metric(family, at)).collect();
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
        let resource = Some(resource.clone());
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }
    }

    fn metric(&self, family: &FamilySnapshot, at: SystemTime) -> Metric {
        let desc = &family.desc;
        let points = || family.series.iter().map(|series| self.number(desc, series, at)).collect();
        let data = match desc.kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points: points(),
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
            Kind::Gauge => metric::Data::Gauge(Gauge { data_points: points() }),
            Kind::Histogram => {
                let distributions = family.series.iter().filter_map(|series| self.distribution(desc, series, at));
                metric::Data::Histogram(Histogram {
                    data_points: distributions.collect(),
                    aggregation_temporality: CUMULATIVE,
                })
            }
        };
        Metric {
            name: name(desc).into_owned(),
            description: desc.help.clone().into_owned(),
            unit: unit(desc).to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn number(&self, desc: &Desc, series: &SeriesSnapshot, at: SystemTime) -> NumberDataPoint {
        let value = match series.value {
            Value::Counter(nanos) if desc.unit == Unit::Seconds => number_data_point::Value::AsDouble(seconds(nanos)),
            Value::Counter(count) => number_data_point::Value::AsInt(whole(count)),
            Value::Gauge(level) => number_data_point::Value::AsDouble(level),
            // Not of a family that holds numbers.
            Value::Histogram(_) => number_data_point::Value::AsInt(0),
        };
        NumberDataPoint {
            attributes: attributes(desc, &series.labels),
            // A level is one of its moment only.
            start_time_unix_nano: if desc.kind == Kind::Gauge { 0 } else { self.start(series) },
            time_unix_nano: nanos(at),
            exemplars: exemplars(desc, series),
            value: Some(value),
            ..NumberDataPoint::default()
        }
    }

    fn distribution(&self, desc: &Desc, series: &SeriesSnapshot, at: SystemTime) -> Option<HistogramDataPoint> {
        let Value::Histogram(values) = &series.value else { return None };
        let HistogramSnapshot { count, sum_ns, min_ns, max_ns, bounds_ns, bounds, .. } = &**values;
        let known = |ns: u64| (*count > 0).then(|| seconds(ns));
        Some(HistogramDataPoint {
            attributes: attributes(desc, &series.labels),
            start_time_unix_nano: self.start(series),
            time_unix_nano: nanos(at),
            count: *count,
            sum: Some(seconds(*sum_ns)),
            bucket_counts: bounds.clone(),
            explicit_bounds: bounds_ns.iter().copied().map(seconds).collect(),
            exemplars: exemplars(desc, series),
            min: known(*min_ns),
            max: known(*max_ns),
            ..HistogramDataPoint::default()
        })
    }

    fn start(&self, series: &SeriesSnapshot) -> u64 {
        nanos(self.since.get(&series.number()).copied().unwrap_or(self.last))
    }
}

/// The name without what OpenTelemetry says elsewhere: a collector puts unit and `_total` on again for Prometheus, so that
/// there a metric has the name that it has at `/metrics`. Those of the conventions have theirs.
fn name(desc: &Desc) -> Cow<'_, str> {
    let name = &*desc.prometheus;
    let name = if desc.kind == Kind::Counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
    let ending = desc.unit.as_str().and_then(|unit| name.strip_suffix(unit)?.strip_suffix('_'));
    let name = ending.unwrap_or(name);
    if name.starts_with(CONVENTIONS) {
        return name.replace('_', ".").into();
    }
    let namespace = NAMESPACES.iter().find(|namespace| name.starts_with(**namespace));
    namespace.map_or(name.into(), |_| name.replacen('_', ".", 1).into())
}

/// The unit, as UCUM has it.
fn unit(desc: &Desc) -> &'static str {
    match desc.unit {
        Unit::Seconds => "s",
        Unit::Bytes => "By",
        // `1` would become `_ratio` of a gauge in Prometheus.
        Unit::None => "",
    }
}

fn attributes(desc: &Desc, labels: &Labels) -> Vec<KeyValue> {
    let is_convention = desc.prometheus.starts_with(CONVENTIONS);
    let name = |label: &str| {
        let known = ATTRIBUTES.iter().find(|(known, _)| is_convention && *known == label);
        known.map_or(label, |(_, attribute)| attribute).to_owned()
    };
    // One that does not apply is empty, which to Prometheus is the same as none.
    let labels = labels.iter().filter(|(_, value)| !value.is_empty());
    labels.map(|(label, value)| pair(name(label), StringValue(value.to_owned()))).collect()
}

fn exemplars(desc: &Desc, series: &SeriesSnapshot) -> Vec<otlp::Exemplar> {
    let value = |exemplar: &Exemplar| match desc.kind {
        Kind::Histogram => exemplar::Value::AsDouble(seconds(exemplar.value)),
        _ => exemplar::Value::AsInt(whole(exemplar.value)),
    };
    let exemplars = series.exemplars.iter().flatten().map(|exemplar| otlp::Exemplar {
        time_unix_nano: nanos(exemplar.at),
        trace_id: exemplar.trace_id.0.get().to_be_bytes().to_vec(),
        value: Some(value(exemplar)),
        ..otlp::Exemplar::default()
    });
    exemplars.collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
