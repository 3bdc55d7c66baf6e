//! `InstrumentationService`.

use mcpscope_hub::{Admin, Reader};
use tonic::{Request, Response, Status};

use super::{off, refused};
use crate::proto::instrumentation_service_server::InstrumentationService;
use crate::proto::{
    InstrumentRequest, InstrumentResponse, InstrumentationServiceGetStatusRequest,
    InstrumentationServiceGetStatusResponse, UninstrumentRequest, UninstrumentResponse,
};

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
    pub(super) admin: Admin,
}

#[tonic::async_trait]
impl InstrumentationService for Service {
    async fn get_status(
        &self,
        _: Request<InstrumentationServiceGetStatusRequest>,
    ) -> Result<Response<InstrumentationServiceGetStatusResponse>, Status> {
        let status = self.reader.instrumentation().map_err(off)?;
        Ok(Response::new(InstrumentationServiceGetStatusResponse { status: Some(status.into()) }))
    }

    async fn instrument(&self, request: Request<InstrumentRequest>) -> Result<Response<InstrumentResponse>, Status> {
        let InstrumentRequest { component, functions } = request.into_inner();
        self.admin.instrument(&component, functions).map_err(refused)?;
        Ok(Response::new(InstrumentResponse {}))
    }

    async fn uninstrument(
        &self,
        request: Request<UninstrumentRequest>,
    ) -> Result<Response<UninstrumentResponse>, Status> {
        self.admin.uninstrument(&request.get_ref().component).map_err(refused)?;
        Ok(Response::new(UninstrumentResponse {}))
    }
}
