//! For each method a request that it grants.

use prost::Message;
use proto::spire::api::server::localauthority::v1 as authorities;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::{agent, bundle, entry, logger, trustdomain};
use proto::spire::api::types;

use super::*;
use crate::testing::wire_id;

fn key() -> Vec<u8> {
    csr(&KeyPair::generate(KeyType::EcP256).unwrap())
}

impl Fixture {
    /// A request that the method grants.
    pub(super) async fn granted(&self, row: &Row) -> Bytes {
        let (service, method) = row.names();
        let bytes = match service.rsplit('.').next().unwrap() {
            "Agent" => self.of_agents(method).await,
            "Bundle" => self.of_bundles(method).await,
            "LocalAuthority" => self.of_authorities(method).await,
            "SVID" => self.of_svids(method),
            _ => self.of_others(method),
        };
        bytes.into()
    }

    async fn of_agents(&self, method: &str) -> Vec<u8> {
        match method {
            "AttestAgent" => attestation(&self.server.token().await, key()).encode_to_vec(),
            "BanAgent" | "DeleteAgent" | "GetAgent" => {
                let id = Some(wire_id(self.server.agent().await.id.path()));
                agent::v1::GetAgentRequest {
                    id,
                    output_mask: None,
                }
                .encode_to_vec()
            }
            "CreateJoinToken" => agent::v1::CreateJoinTokenRequest {
                ttl: 60,
                ..Default::default()
            }
            .encode_to_vec(),
            "RenewAgent" => agent::v1::RenewAgentRequest {
                params: Some(agent::v1::AgentX509svidParams { csr: key() }),
            }
            .encode_to_vec(),
            _ => Vec::new(),
        }
    }

    async fn of_bundles(&self, method: &str) -> Vec<u8> {
        match method {
            "AppendBundle" => bundle::v1::AppendBundleRequest {
                jwt_authorities: vec![jwt_key("appended")],
                ..Default::default()
            }
            .encode_to_vec(),
            "PublishJWTAuthority" => bundle::v1::PublishJwtAuthorityRequest {
                jwt_authority: Some(jwt_key("published")),
            }
            .encode_to_vec(),
            "GetFederatedBundle" => {
                let bundle = proto::convert::bundle_to_wire(
                    &spiffe::bundle::Bundle::new("far.example".parse().unwrap()),
                    None,
                );
                let mut client =
                    bundle::v1::bundle_client::BundleClient::new(self.server.local().await);
                let request = bundle::v1::BatchSetFederatedBundleRequest {
                    bundle: vec![types::Bundle {
                        jwt_authorities: vec![jwt_key("far")],
                        ..bundle
                    }],
                    output_mask: None,
                };
                client.batch_set_federated_bundle(request).await.unwrap();
                bundle::v1::GetFederatedBundleRequest {
                    trust_domain: "far.example".to_owned(),
                    output_mask: None,
                }
                .encode_to_vec()
            }
            _ => Vec::new(),
        }
    }

    async fn of_authorities(&self, method: &str) -> Vec<u8> {
        match method {
            "ActivateJWTAuthority" | "ActivateX509Authority" => self.prepared(method).await,
            "TaintJWTAuthority"
            | "TaintX509Authority"
            | "RevokeJWTAuthority"
            | "RevokeX509Authority" => self.old(method).await,
            _ => Vec::new(),
        }
    }

    fn of_svids(&self, method: &str) -> Vec<u8> {
        match method {
            "BatchNewX509SVID" => svid::v1::BatchNewX509svidRequest {
                params: vec![svid::v1::NewX509svidParams {
                    entry_id: self.entry_id.clone(),
                    csr: key(),
                }],
            }
            .encode_to_vec(),
            "BatchNewWITSVID" => svid::v1::BatchNewWitsvidRequest {
                params: vec![svid::v1::NewWitsvidParams::default()],
            }
            .encode_to_vec(),
            "MintX509SVID" => {
                let key = KeyPair::generate(KeyType::EcP256).unwrap();
                let csr = spiffe::csr::build_csr(
                    &key,
                    &spiffe::x509::Subject::spire(),
                    &["spiffe://example.org/minted"],
                    &[],
                );
                svid::v1::MintX509svidRequest {
                    csr: csr.unwrap(),
                    ttl: 0,
                }
                .encode_to_vec()
            }
            "MintJWTSVID" => svid::v1::MintJwtsvidRequest {
                id: Some(wire_id("/minted")),
                audience: vec!["a".to_owned()],
                ttl: 0,
            }
            .encode_to_vec(),
            "NewJWTSVID" => svid::v1::NewJwtsvidRequest {
                entry_id: self.entry_id.clone(),
                audience: vec!["a".to_owned()],
            }
            .encode_to_vec(),
            "NewDownstreamX509CA" => svid::v1::NewDownstreamX509caRequest {
                csr: key(),
                preferred_ttl: 0,
            }
            .encode_to_vec(),
            _ => Vec::new(),
        }
    }

    fn of_others(&self, method: &str) -> Vec<u8> {
        match method {
            "GetEntry" => entry::v1::GetEntryRequest {
                id: self.entry_id.clone(),
                output_mask: None,
            }
            .encode_to_vec(),
            "SetLogLevel" => logger::v1::SetLogLevelRequest { new_level: 5 }.encode_to_vec(),
            "GetFederationRelationship" => trustdomain::v1::GetFederationRelationshipRequest {
                trust_domain: "far.example".to_owned(),
                output_mask: None,
            }
            .encode_to_vec(),
            "SyncAuthorizedEntries" => {
                entry::v1::SyncAuthorizedEntriesRequest::default().encode_to_vec()
            }
            _ => Vec::new(),
        }
    }

    /// Names a prepared authority of the method's kind.
    async fn prepared(&self, method: &str) -> Vec<u8> {
        let mut client = LocalAuthorityClient::new(self.server.local().await);
        let prepared = if method.contains("JWT") {
            let answer = client
                .prepare_jwt_authority(authorities::PrepareJwtAuthorityRequest {})
                .await;
            answer.unwrap().into_inner().prepared_authority
        } else {
            let answer = client
                .prepare_x509_authority(authorities::PrepareX509AuthorityRequest {})
                .await;
            answer.unwrap().into_inner().prepared_authority
        };
        authorities::ActivateJwtAuthorityRequest {
            authority_id: prepared.unwrap().authority_id,
        }
        .encode_to_vec()
    }

    /// Names an old authority of the method's kind.
    async fn old(&self, method: &str) -> Vec<u8> {
        let activation = self.prepared(method).await;
        let mut client = LocalAuthorityClient::new(self.server.local().await);
        let old = if method.contains("JWT") {
            let request =
                authorities::ActivateJwtAuthorityRequest::decode(activation.as_slice()).unwrap();
            client.activate_jwt_authority(request).await.unwrap();
            let answer = client
                .get_jwt_authority_state(authorities::GetJwtAuthorityStateRequest {})
                .await;
            let old = answer.unwrap().into_inner().old.unwrap().authority_id;
            if method.starts_with("Revoke") {
                let request = authorities::TaintJwtAuthorityRequest {
                    authority_id: old.clone(),
                };
                client.taint_jwt_authority(request).await.unwrap();
            }
            old
        } else {
            let request =
                authorities::ActivateX509AuthorityRequest::decode(activation.as_slice()).unwrap();
            client.activate_x509_authority(request).await.unwrap();
            let answer = client
                .get_x509_authority_state(authorities::GetX509AuthorityStateRequest {})
                .await;
            let old = answer.unwrap().into_inner().old.unwrap().authority_id;
            if method.starts_with("Revoke") {
                let request = authorities::TaintX509AuthorityRequest {
                    authority_id: old.clone(),
                };
                client.taint_x509_authority(request).await.unwrap();
            }
            old
        };
        authorities::TaintJwtAuthorityRequest { authority_id: old }.encode_to_vec()
    }
}

fn jwt_key(id: &str) -> types::JwtKey {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public_key().spki_der().to_vec(),
        key_id: id.to_owned(),
        expires_at: crate::testing::NOW + 3_600,
        tainted: false,
    }
}
