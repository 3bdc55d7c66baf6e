//! `MetricsService`.

use mcpscope_core::bounded;
use mcpscope_hub::{Admin, AdminError, Reader};
use tonic::{Request, Response, Status, Streaming};

use super::{Blocking, off, refused};
use crate::convert;
use crate::proto::metrics_service_server::MetricsService;
use crate::proto::{
    GetMetricRequest, GetMetricResponse, GetSummaryRequest, GetSummaryResponse, ListMetricsRequest,
    ListMetricsResponse, RecordMetricsRequest, RecordMetricsResponse, ResetMetricsRequest, ResetMetricsResponse,
};

/// Most values that one `RecordMetrics` takes.
const MAX_RECORDS: u64 = 1_000_000;
/// Most labels of one value; no metric has more than four.
const MAX_LABELS: usize = 16;
/// Longest name or label value, in bytes.
const MAX_TEXT_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
    pub(super) admin: Admin,
    pub(super) blocking: Blocking,
}

impl Service {
    /// What of a record is refused before it is looked at.
    fn check(record: &RecordMetricsRequest) -> Result<(), String> {
        let labels = record.labels.len();
        if labels > MAX_LABELS {
            return Err(format!("labels: expected at most {MAX_LABELS}; found {labels}"));
        }
        let mut texts = record.labels.iter().flat_map(|(name, value)| [name, value]).chain([&record.name]);
        match texts.find(|text| text.len() > MAX_TEXT_BYTES) {
            Some(long) => {
                Err(format!("names and labels: expected at most {MAX_TEXT_BYTES} bytes; found {}", long.len()))
            }
            None => Ok(()),
        }
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
        let summary = self.blocking.run(move || reader.summary()).await?.map_err(off)?;
        Ok(Response::new(GetSummaryResponse { summary: Some((&summary).into()) }))
    }

    async fn list_metrics(&self, _: Request<ListMetricsRequest>) -> Result<Response<ListMetricsResponse>, Status> {
        let reader = self.reader.clone();
        let metrics = self.blocking.run(move || {
            let (views, usage) = (reader.views()?, reader.usage());
            Ok(convert::metrics(&views, reader.timestamp(), reader.uptime(), Some(&usage)))
        });
        Ok(Response::new(ListMetricsResponse { metrics: Some(metrics.await?.map_err(off)?) }))
    }

    async fn get_metric(&self, request: Request<GetMetricRequest>) -> Result<Response<GetMetricResponse>, Status> {
        let GetMetricRequest { name } = request.into_inner();
        let shown = bounded(&name, MAX_TEXT_BYTES).to_owned();
        let reader = self.reader.clone();
        let metric = self.blocking.run(move || Ok(reader.metric(&name)?.map(|view| (&view).into())));
        let metric = metric.await?.map_err(off)?.ok_or_else(|| {
            let known = mcpscope_hub::metrics::Metrics::CRITICAL_NAMES.join(", ");
            Status::not_found(format!("no critical metric {shown:?}: expected one of {known}"))
        })?;
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
