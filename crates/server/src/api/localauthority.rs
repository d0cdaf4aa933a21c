//! The LocalAuthority service: an operator's look at the authorities and the forced rotation, taint and revocation.
//! The rules are those of `ca`; this file gives their refusals SPIRE's codes.

use std::sync::Arc;

use proto::spire::api::server::localauthority::v1 as rpc;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthority;
use tonic::{Request, Response, Status};

use crate::audit::Fields;
use crate::ca::{AuthorityKind, AuthorityState, AuthorityStates, Ca, OperationError};
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

#[derive(Debug)]
pub(crate) struct LocalAuthorityService {
    pub(crate) ca: Arc<Ca>,
}

fn wit_not_yet<T>() -> Result<Response<T>, Status> {
    Err(refused(
        Kind::Unimplemented,
        "WIT-SVID functionality is not yet implemented",
    )
    .into())
}

fn refusal(error: &OperationError) -> OpError {
    let code = match error {
        OperationError::JwtDisabled => Kind::Unimplemented,
        OperationError::Initializing => Kind::Unavailable,
        OperationError::NotPrepared(_) | OperationError::Failed { .. } => Kind::Internal,
        OperationError::TaintsBelowUpstream
        | OperationError::RevokesBelowUpstream
        | OperationError::NoUpstream => Kind::FailedPrecondition,
        OperationError::NoAuthorityId
        | OperationError::UnexpectedAuthorityId
        | OperationError::TaintsCurrent
        | OperationError::TaintsNotOld(_)
        | OperationError::InvalidAuthorityId(_)
        | OperationError::InvalidSubjectKeyId { .. } => Kind::InvalidArgument,
    };
    refused(code, error.to_string())
}

fn to_wire(state: &AuthorityState) -> rpc::AuthorityState {
    rpc::AuthorityState {
        authority_id: state.authority_id.clone(),
        expires_at: state.expires_at,
        upstream_authority_subject_key_id: state.upstream_authority_id.clone(),
    }
}

/// An authority of which only the name is told.
fn named(authority_id: String) -> rpc::AuthorityState {
    rpc::AuthorityState {
        authority_id,
        ..rpc::AuthorityState::default()
    }
}

/// Ends an operation: SPIRE's status for a refusal, and the audit line.
fn concluded<T>(
    caller: &Caller,
    outcome: Result<T, OperationError>,
    field: &'static str,
    value: &str,
) -> Result<T, OpError> {
    caller.describe(|| Fields::new().with(field, value));
    outcome.map_err(|error| refusal(&error))
}

const ID: &str = "local_authority_id";
const KEY_ID: &str = "subject_key_id";

impl LocalAuthorityService {
    fn states(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
    ) -> Result<Arc<AuthorityStates>, OpError> {
        concluded(caller, self.ca.authorities(kind), ID, "")
    }

    async fn prepare(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
    ) -> Result<rpc::AuthorityState, OpError> {
        concluded(caller, self.ca.prepare(kind).await, ID, "").map(|state| to_wire(&state))
    }

    async fn activate(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<rpc::AuthorityState, OpError> {
        concluded(caller, self.ca.activate(kind, id).await, ID, id).map(|state| to_wire(&state))
    }

    async fn taint(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<rpc::AuthorityState, OpError> {
        concluded(caller, self.ca.taint(kind, id).await, ID, id).map(|state| to_wire(&state))
    }

    async fn revoke(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<rpc::AuthorityState, OpError> {
        concluded(caller, self.ca.revoke(kind, id).await, ID, id)?;
        Ok(named(id.to_owned()))
    }
}

#[tonic::async_trait]
impl LocalAuthority for LocalAuthorityService {
    async fn get_jwt_authority_state(
        &self,
        request: Request<rpc::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<rpc::GetJwtAuthorityStateResponse>, Status> {
        let states = self.states(&Caller::of(&request)?, AuthorityKind::Jwt)?;
        Ok(Response::new(rpc::GetJwtAuthorityStateResponse {
            active: states.active.as_ref().map(to_wire),
            prepared: states.prepared.as_ref().map(to_wire),
            old: states.old.as_ref().map(to_wire),
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<rpc::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<rpc::PrepareJwtAuthorityResponse>, Status> {
        let prepared = self
            .prepare(&Caller::of(&request)?, AuthorityKind::Jwt)
            .await?;
        Ok(Response::new(rpc::PrepareJwtAuthorityResponse {
            prepared_authority: Some(prepared),
        }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<rpc::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<rpc::ActivateJwtAuthorityResponse>, Status> {
        let activated = self
            .activate(
                &Caller::of(&request)?,
                AuthorityKind::Jwt,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::ActivateJwtAuthorityResponse {
            activated_authority: Some(activated),
        }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<rpc::TaintJwtAuthorityRequest>,
    ) -> Result<Response<rpc::TaintJwtAuthorityResponse>, Status> {
        let tainted = self
            .taint(
                &Caller::of(&request)?,
                AuthorityKind::Jwt,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::TaintJwtAuthorityResponse {
            tainted_authority: Some(tainted),
        }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<rpc::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<rpc::RevokeJwtAuthorityResponse>, Status> {
        let revoked = self
            .revoke(
                &Caller::of(&request)?,
                AuthorityKind::Jwt,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::RevokeJwtAuthorityResponse {
            revoked_authority: Some(revoked),
        }))
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<rpc::GetX509AuthorityStateRequest>,
    ) -> Result<Response<rpc::GetX509AuthorityStateResponse>, Status> {
        let states = self.states(&Caller::of(&request)?, AuthorityKind::X509)?;
        Ok(Response::new(rpc::GetX509AuthorityStateResponse {
            active: states.active.as_ref().map(to_wire),
            prepared: states.prepared.as_ref().map(to_wire),
            old: states.old.as_ref().map(to_wire),
        }))
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<rpc::PrepareX509AuthorityRequest>,
    ) -> Result<Response<rpc::PrepareX509AuthorityResponse>, Status> {
        let prepared = self
            .prepare(&Caller::of(&request)?, AuthorityKind::X509)
            .await?;
        Ok(Response::new(rpc::PrepareX509AuthorityResponse {
            prepared_authority: Some(prepared),
        }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<rpc::ActivateX509AuthorityRequest>,
    ) -> Result<Response<rpc::ActivateX509AuthorityResponse>, Status> {
        let activated = self
            .activate(
                &Caller::of(&request)?,
                AuthorityKind::X509,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::ActivateX509AuthorityResponse {
            activated_authority: Some(activated),
        }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<rpc::TaintX509AuthorityRequest>,
    ) -> Result<Response<rpc::TaintX509AuthorityResponse>, Status> {
        let tainted = self
            .taint(
                &Caller::of(&request)?,
                AuthorityKind::X509,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::TaintX509AuthorityResponse {
            tainted_authority: Some(tainted),
        }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<rpc::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<rpc::TaintX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id;
        let upstream_authority_subject_key_id =
            concluded(&caller, self.ca.taint_upstream(&id).await, KEY_ID, &id)?;
        Ok(Response::new(rpc::TaintX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id,
        }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<rpc::RevokeX509AuthorityRequest>,
    ) -> Result<Response<rpc::RevokeX509AuthorityResponse>, Status> {
        let revoked = self
            .revoke(
                &Caller::of(&request)?,
                AuthorityKind::X509,
                &request.get_ref().authority_id,
            )
            .await?;
        Ok(Response::new(rpc::RevokeX509AuthorityResponse {
            revoked_authority: Some(revoked),
        }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<rpc::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<rpc::RevokeX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id;
        let upstream_authority_subject_key_id =
            concluded(&caller, self.ca.revoke_upstream(&id).await, KEY_ID, &id)?;
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
