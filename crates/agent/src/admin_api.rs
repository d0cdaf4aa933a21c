//! The administration socket: health for now. The delegated identity, debug and logger APIs have their place here.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::attestor::Workload;
use crate::endpoints::Serve;
use crate::workload_api::Context;

/// The admin socket's services.
#[derive(Debug, Clone)]
pub(crate) struct AdminApi(Arc<Context>);

impl AdminApi {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

impl Serve for AdminApi {
    async fn serve(
        &self,
        _workload: Arc<Workload>,
        request: Request<Incoming>,
    ) -> Response<tonic::body::Body> {
        self.0.standard.answer(request).await
    }
}
