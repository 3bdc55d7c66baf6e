//! `MetricsService`.

use mcpscope_core::bounded;
use mcpscope_hub::{Admin, AdminError, Reader, Turn};
use tonic::{Request, Response, Status, Streaming};

use super::{off, refused};
use crate::convert;
use crate::proto::metrics_service_server::MetricsService;
use crate::proto::{
    GetMetricRequest, GetMetricResponse, GetSummaryRequest, GetSummaryResponse, ListMetricsRequest,
    ListMetricsResponse, RecordMetricsRequest, RecordMetricsResponse, ResetMetricsRequest, ResetMetricsResponse,
};

/// Most values that one `RecordMetrics` takes.
const MAX_RECORDS: u64 = 1_000_000;
/// Most labels of one value.
const MAX_LABELS: usize = 16;
/// Longest name of a metric or a label, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Longest label value, in bytes.
const MAX_VALUE_BYTES: usize = 256;
/// Most names of metrics that an error lists.
const MAX_LISTED: usize = 32;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
    pub(super) admin: Admin,
    pub(super) turn: Turn,
}

impl Service {
    /// What of a record is refused before it is looked at.
    fn check(record: &RecordMetricsRequest) -> Result<(), String> {
        let labels = record.labels.len();
        if labels > MAX_LABELS {
            return Err(format!("labels: expected at most {MAX_LABELS}; found {labels}"));
        }
        let fits = |what: &str, text: &String, max: usize| match text.len() {
            found if found > max => Err(format!("{what}: expected at most {max} bytes; found {found}")),
            _ => Ok(()),
        };
        record.labels.keys().chain([&record.name]).try_for_each(|name| fits("names", name, MAX_NAME_BYTES))?;
        record.labels.values().try_for_each(|value| fits("label values", value, MAX_VALUE_BYTES))
    }

    /// Records one value; the inner error is why it was refused.
    fn record(&self, record: &RecordMetricsRequest) -> Result<Result<(), String>, Status> {
        if let Err(refusal) = Self::check(record) {
            return Ok(Err(refusal));
        }
        let labels: Vec<_> = record.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match self.admin.record(&record.name, record.value, &labels) {
            Ok(()) => Ok(Ok(())),
            Err(AdminError::Off(what)) => Err(off(what)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn get_summary(&self, _: Request<GetSummaryRequest>) -> Result<Response<GetSummaryResponse>, Status> {
        let reader = self.reader.clone();
        let summary = self.turn.work(move || reader.summary()).await.map_err(off)?;
        Ok(Response::new(GetSummaryResponse { summary: Some((&summary).into()) }))
    }

    async fn list_metrics(&self, _: Request<ListMetricsRequest>) -> Result<Response<ListMetricsResponse>, Status> {
        let reader = self.reader.clone();
        let metrics = self.turn.work(move || {
            let (views, usage) = (reader.views()?, reader.usage());
            Ok(convert::metrics(&views, reader.timestamp(), reader.uptime(), Some(&usage)))
        });
        Ok(Response::new(ListMetricsResponse { metrics: Some(metrics.await.map_err(off)?) }))
    }

    async fn get_metric(&self, request: Request<GetMetricRequest>) -> Result<Response<GetMetricResponse>, Status> {
        let GetMetricRequest { name } = request.into_inner();
        let shown = bounded(&name, MAX_NAME_BYTES).to_owned();
        let reader = self.reader.clone();
        let metric = self.turn.work(move || Ok(reader.metric(&name)?.map(|view| (&view).into())));
        let Some(metric) = metric.await.map_err(off)? else {
            let names = self.reader.metric_names().map_err(off)?;
            let listed = names.get(..MAX_LISTED).unwrap_or(&names);
            let more = match names.len() - listed.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!("no critical metric {shown:?}: expected one of {}{more}", listed.join(", "));
            return Err(Status::not_found(message));
        };
        let timestamp = convert::ms_since_epoch(self.reader.timestamp());
        Ok(Response::new(GetMetricResponse { metric: Some(metric), timestamp }))
    }

    async fn reset_metrics(&self, _: Request<ResetMetricsRequest>) -> Result<Response<ResetMetricsResponse>, Status> {
        self.admin.reset_metrics().map_err(refused)?;
        Ok(Response::new(ResetMetricsResponse {}))
    }

    async fn record_metrics(
        &self,
        request: Request<Streaming<RecordMetricsRequest>>,
    ) -> Result<Response<RecordMetricsResponse>, Status> {
        let mut records = request.into_inner();
        let mut response = RecordMetricsResponse::default();
        while let Some(record) = records.message().await? {
            if response.accepted + response.rejected >= MAX_RECORDS {
                let message = format!(
                    "expected at most {MAX_RECORDS} values in one call; of these {} were recorded",
                    response.accepted
                );
                return Err(Status::resource_exhausted(message));
            }
            match self.record(&record)? {
                Ok(()) => response.accepted += 1,
                Err(refusal) => {
                    response.rejected += 1;
                    response.first_error.get_or_insert(refusal);
                }
            }
        }
        Ok(Response::new(response))
    }
}
