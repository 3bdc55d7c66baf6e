//! The services: each asks the hub and converts the answer.

mod chaos;
mod dashboard;
mod grpc_health;
mod health;
mod instrumentation;
mod metrics;
mod snapshots;
mod traces;

use std::future::pending;

use futures_util::stream::{Stream, StreamExt, once};
use mcpscope_hub::hooks::InstrumentError;
use mcpscope_hub::{Admin, AdminError, ChaosToken, Off, Reader};
use tonic::Status;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::{Builder, Error as ReflectionError};

use self::grpc_health::GrpcHealth;
use self::snapshots::Snapshots;
use crate::convert::Invalid;
use crate::proto::chaos_service_server::ChaosServiceServer;
use crate::proto::health_service_server::HealthServiceServer;
use crate::proto::instrumentation_service_server::InstrumentationServiceServer;
use crate::proto::metrics_service_server::MetricsServiceServer;
use crate::proto::trace_service_server::TraceServiceServer;

/// Largest request message that is read, in bytes: what is asked here is small, and many may ask at once.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// All services.
///
/// # Errors
/// A descriptor that reflection cannot read.
pub(crate) fn routes(reader: &Reader, admin: Admin, chaos_token: ChaosToken) -> Result<Routes, ReflectionError> {
    let turn = reader.turn();
    let instrumentation = instrumentation::Service { reader: reader.clone(), admin: admin.clone() };
    let metrics = metrics::Service { reader: reader.clone(), admin: admin.clone(), turn: turn.clone() };
    let dashboard = dashboard::Service(Snapshots::new(reader.clone(), turn.clone()));
    let traces = traces::Service { reader: reader.clone(), admin: admin.clone(), turn };
    let chaos = chaos::Service::new(reader.clone(), admin, chaos_token);
    let health = health::Service { reader: reader.clone() };
    let max = MAX_REQUEST_BYTES;
    // The gate ends every call, watches too.
    let routes = health_service(reader.clone(), pending())
        .add_service(HealthServiceServer::new(health).max_decoding_message_size(max))
        .add_service(MetricsServiceServer::new(metrics).max_decoding_message_size(max))
        .add_service(TraceServiceServer::new(traces).max_decoding_message_size(max))
        .add_service(dashboard)
        .add_service(InstrumentationServiceServer::new(instrumentation).max_decoding_message_size(max))
        .add_service(ChaosServiceServer::new(chaos).max_decoding_message_size(max))
        .add_service(reflection().build_v1()?.max_decoding_message_size(max))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(max));
    Ok(routes.prepare())
}

/// `grpc.health.v1.Health` alone: for a listener that shows nothing else, such as that of `--probe`.
///
/// A tower service of `http::Request<B>`, cheap to clone. It looks neither at the request's host nor at its deadline. Once
/// `stop` ends, so do watches, with UNAVAILABLE.
#[must_use]
pub fn health_service(reader: Reader, stop: impl Future<Output = ()> + Send + 'static) -> Routes {
    let health = GrpcHealth::new(reader, stop);
    Routes::new(HealthServer::new(health).max_decoding_message_size(MAX_REQUEST_BYTES))
}

fn reflection() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Items until they or the hub end, and then the reason.
fn until_stopped<T: Send + 'static>(items: impl Stream<Item = T> + Send + 'static) -> BoxStream<T> {
    let end = once(async { Err(Status::unavailable("the instance is stopping")) });
    Box::pin(items.map(Ok).chain(end))
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn off(off: Off) -> Status {
    Status::failed_precondition(off.to_string())
}

fn refused(error: AdminError) -> Status {
    let message = error.to_string();
    match error {
        AdminError::Off(what) => off(what),
        AdminError::Record(_) => Status::invalid_argument(message),
        AdminError::Instrument(error) => match error {
            InstrumentError::Unknown(_) => Status::not_found(message),
            InstrumentError::TooManyComponents => Status::resource_exhausted(message),
            _ => Status::invalid_argument(message),
        },
        _ => Status::unknown(message),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn what_is_wrong_has_its_own_code() {
        for (error, code) in [
            (Off::Metrics.into(), Code::FailedPrecondition),
            (InstrumentError::Unknown("x".into()).into(), Code::NotFound),
            (InstrumentError::TooManyComponents.into(), Code::ResourceExhausted),
            (InstrumentError::Name.into(), Code::InvalidArgument),
            (AdminError::from(InstrumentError::NoFunctions("x".into())), Code::InvalidArgument),
        ] {
            let message = error.to_string();
            let status = refused(error);
            assert_eq!((status.code(), status.message()), (code, message.as_str()));
        }
    }
}
