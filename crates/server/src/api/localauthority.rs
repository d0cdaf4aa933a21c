//! The LocalAuthority service: an operator's look at the authorities and their forced rotation, taint and revocation.

use proto::spire::api::server::localauthority::v1 as rpc;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthority;
use tonic::{Request, Response, Status};

use crate::ca::{AuthorityKind, AuthorityState};
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};
use crate::ops::authorities::Authorities;

#[derive(Debug)]
pub(crate) struct LocalAuthorityService {
    pub(crate) authorities: Authorities,
}

fn wit_not_yet<T>() -> Result<Response<T>, Status> {
    Err(refused(
        Kind::Unimplemented,
        "WIT-SVID functionality is not yet implemented",
    )
    .into())
}

fn to_wire(state: &AuthorityState) -> rpc::AuthorityState {
    rpc::AuthorityState {
        authority_id: state.authority_id.clone(),
        expires_at: state.expires_at,
        upstream_authority_subject_key_id: state.upstream_authority_id.clone(),
    }
}

/// The verbs as every kind of authority has them. Each gives the state as it goes on the wire.
impl LocalAuthorityService {
    async fn prepare(&self, kind: AuthorityKind) -> Result<Option<rpc::AuthorityState>, OpError> {
        let prepared = self.authorities.prepare(kind).await?;
        Ok(Some(to_wire(&prepared)))
    }

    async fn activate(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<rpc::AuthorityState>, OpError> {
        let activated = self.authorities.activate(caller, kind, id).await?;
        Ok(Some(to_wire(&activated)))
    }

    async fn taint(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<rpc::AuthorityState>, OpError> {
        let tainted = self.authorities.taint(caller, kind, id).await?;
        Ok(Some(to_wire(&tainted)))
    }

    /// SPIRE: of what was revoked only the name is given.
    async fn revoke(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<rpc::AuthorityState>, OpError> {
        self.authorities.revoke(caller, kind, id).await?;
        Ok(Some(rpc::AuthorityState {
            authority_id: id.to_owned(),
            ..rpc::AuthorityState::default()
        }))
    }
}

#[tonic::async_trait]
impl LocalAuthority for LocalAuthorityService {
    async fn get_jwt_authority_state(
        &self,
        _: Request<rpc::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<rpc::GetJwtAuthorityStateResponse>, Status> {
        let states = self.authorities.states(AuthorityKind::Jwt)?;
        Ok(Response::new(rpc::GetJwtAuthorityStateResponse {
            active: states.active.as_ref().map(to_wire),
            prepared: states.prepared.as_ref().map(to_wire),
            old: states.old.as_ref().map(to_wire),
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        _: Request<rpc::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<rpc::PrepareJwtAuthorityResponse>, Status> {
        let prepared_authority = self.prepare(AuthorityKind::Jwt).await?;
        Ok(Response::new(rpc::PrepareJwtAuthorityResponse {
            prepared_authority,
        }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<rpc::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<rpc::ActivateJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let activated_authority = self.activate(&caller, AuthorityKind::Jwt, id).await?;
        Ok(Response::new(rpc::ActivateJwtAuthorityResponse {
            activated_authority,
        }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<rpc::TaintJwtAuthorityRequest>,
    ) -> Result<Response<rpc::TaintJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let tainted_authority = self.taint(&caller, AuthorityKind::Jwt, id).await?;
        Ok(Response::new(rpc::TaintJwtAuthorityResponse {
            tainted_authority,
        }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<rpc::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<rpc::RevokeJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let revoked_authority = self.revoke(&caller, AuthorityKind::Jwt, id).await?;
        Ok(Response::new(rpc::RevokeJwtAuthorityResponse {
            revoked_authority,
        }))
    }

    async fn get_x509_authority_state(
        &self,
        _: Request<rpc::GetX509AuthorityStateRequest>,
    ) -> Result<Response<rpc::GetX509AuthorityStateResponse>, Status> {
        let states = self.authorities.states(AuthorityKind::X509)?;
        Ok(Response::new(rpc::GetX509AuthorityStateResponse {
            active: states.active.as_ref().map(to_wire),
            prepared: states.prepared.as_ref().map(to_wire),
            old: states.old.as_ref().map(to_wire),
        }))
    }

    async fn prepare_x509_authority(
        &self,
        _: Request<rpc::PrepareX509AuthorityRequest>,
    ) -> Result<Response<rpc::PrepareX509AuthorityResponse>, Status> {
        let prepared_authority = self.prepare(AuthorityKind::X509).await?;
        Ok(Response::new(rpc::PrepareX509AuthorityResponse {
            prepared_authority,
        }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<rpc::ActivateX509AuthorityRequest>,
    ) -> Result<Response<rpc::ActivateX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let activated_authority = self.activate(&caller, AuthorityKind::X509, id).await?;
        Ok(Response::new(rpc::ActivateX509AuthorityResponse {
            activated_authority,
        }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<rpc::TaintX509AuthorityRequest>,
    ) -> Result<Response<rpc::TaintX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let tainted_authority = self.taint(&caller, AuthorityKind::X509, id).await?;
        Ok(Response::new(rpc::TaintX509AuthorityResponse {
            tainted_authority,
        }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<rpc::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<rpc::TaintX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id;
        let upstream_authority_subject_key_id =
            self.authorities.taint_upstream(&caller, &id).await?;
        Ok(Response::new(rpc::TaintX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id,
        }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<rpc::RevokeX509AuthorityRequest>,
    ) -> Result<Response<rpc::RevokeX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = &request.get_ref().authority_id;
        let revoked_authority = self.revoke(&caller, AuthorityKind::X509, id).await?;
        Ok(Response::new(rpc::RevokeX509AuthorityResponse {
            revoked_authority,
        }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<rpc::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<rpc::RevokeX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id;
        let upstream_authority_subject_key_id =
            self.authorities.revoke_upstream(&caller, &id).await?;
        Ok(Response::new(rpc::RevokeX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id,
        }))
    }

    async fn get_wit_authority_state(
        &self,
        _: Request<rpc::GetWitAuthorityStateRequest>,
    ) -> Result<Response<rpc::GetWitAuthorityStateResponse>, Status> {
        wit_not_yet()
    }

    async fn prepare_wit_authority(
        &self,
        _: Request<rpc::PrepareWitAuthorityRequest>,
    ) -> Result<Response<rpc::PrepareWitAuthorityResponse>, Status> {
        wit_not_yet()
    }

    async fn activate_wit_authority(
        &self,
        _: Request<rpc::ActivateWitAuthorityRequest>,
    ) -> Result<Response<rpc::ActivateWitAuthorityResponse>, Status> {
        wit_not_yet()
    }

    async fn taint_wit_authority(
        &self,
        _: Request<rpc::TaintWitAuthorityRequest>,
    ) -> Result<Response<rpc::TaintWitAuthorityResponse>, Status> {
        wit_not_yet()
    }

    async fn revoke_wit_authority(
        &self,
        _: Request<rpc::RevokeWitAuthorityRequest>,
    ) -> Result<Response<rpc::RevokeWitAuthorityResponse>, Status> {
        wit_not_yet()
    }
}
