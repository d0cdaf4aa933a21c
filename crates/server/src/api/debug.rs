//! The Debug service: what the server is and how much it holds.

use proto::convert::spiffe_id_to_wire;
use proto::spire::api::server::debug::v1::debug_server::Debug as DebugApi;
use proto::spire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse, get_info_response};
use spiffe::clock::unix_seconds;
use spiffe::id::SpiffeId;
use spiffe::x509::Certificate;
use tonic::{Request, Response, Status};

use super::wire;
use crate::ops::server_info::ServerInfo;

#[derive(Debug)]
pub(crate) struct DebugService {
    pub(crate) info: ServerInfo,
}

#[tonic::async_trait]
impl DebugApi for DebugService {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let info = self.info.get()?;
        Ok(Response::new(GetInfoResponse {
            svid_chain: info.chain.iter().map(cert_to_wire).collect(),
            uptime: i32::try_from(info.uptime.as_secs()).unwrap_or(i32::MAX),
            agents_count: wire::count(info.agents),
            entries_count: wire::count(info.entries),
            federated_bundles_count: wire::count(info.bundles),
        }))
    }
}

fn cert_to_wire(certificate: &Certificate) -> get_info_response::Cert {
    let id = match certificate.uris() {
        [uri] => SpiffeId::parse(uri).ok(),
        _ => None,
    };
    get_info_response::Cert {
        id: id.as_ref().map(spiffe_id_to_wire),
        expires_at: unix_seconds(certificate.not_after()),
        subject: certificate.subject().to_string(),
    }
}
