//! A server for tests: real TLS and gRPC on a port of the kernel's choice, answers from memory, and faults on request.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use proto::spire::api::server::agent::v1 as agent_v1;
use proto::spire::api::server::agent::v1::attest_agent_request::Step;
use proto::spire::api::server::agent::v1::attest_agent_response::Step as Answer;
use proto::spire::api::server::bundle::v1 as bundle_v1;
use proto::spire::api::server::entry::v1 as entry_v1;
use proto::spire::api::server::svid::v1 as svid_v1;
use proto::spire::api::types;
use spiffe::bundle::{Bundle, JwtAuthority, X509Bundle};
use spiffe::clock::{Clock as _, SystemClock, unix_seconds};
use spiffe::csr::Csr;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::{JwsAlgorithm, KeyPair, KeyType};
use spiffe::svid::jwt::{JwtClaims, sign_jwt_svid};
use spiffe::svid::x509::BundleSource;
use spiffe::tls::{CertResolver, KeyExchange, SpiffeClientVerifier, server_config};
use spiffe::trust_domain::TrustDomain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::Grpc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{Authority, MovedClock};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the server knows and how it misbehaves.
pub(crate) struct State {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) authority: Authority,
    pub(crate) tokens: BTreeMap<String, TokenState>,
    pub(crate) entries: BTreeMap<String, Arc<Entry>>,
    pub(crate) federated: BTreeMap<String, Bundle>,
    /// Bundles of other trust domains sent as they are, also what this agent cannot read.
    pub(crate) federated_as_sent: BTreeMap<String, types::Bundle>,
    pub(crate) bundle: Bundle,
    /// Serve our stream; else it is unimplemented, as with SPIRE.
    pub(crate) watch: bool,
    pub(crate) svid_life: Duration,
    pub(crate) agent_life: Duration,
    /// What the next calls of a method answer in place of the truth.
    pub(crate) faults: BTreeMap<&'static str, VecDeque<Status>>,
    /// What every authenticated call answers, such as a ban.
    pub(crate) verdict: Option<Status>,
    /// What an attesting node is asked.
    pub(crate) challenges: Vec<Vec<u8>>,
    /// While it is there and false, attestations are under way and not answered.
    pub(crate) attestation_gate: Option<tokio::sync::watch::Receiver<bool>>,
    /// Done once, between the redemption of a token and the answer.
    pub(crate) when_redeemed: Option<Box<dyn FnOnce() + Send>>,
    /// Entries that are refused within a batch.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) calls: BTreeMap<String, usize>,
    pub(crate) revision: u64,
    /// Streams of changes opened so far; each gets every event sent after it was counted.
    pub(crate) streams: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    Good,
    Used,
    Expired,
}

/// How long the server's own certificate is valid.
const OWN_LIFE: Duration = Duration::from_secs(90 * 60);

/// The server's bundle as it is, for the handshakes of its clients.
struct OwnBundle(Arc<Mutex<State>>);

impl std::fmt::Debug for OwnBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnBundle")
    }
}

impl BundleSource for OwnBundle {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        let state = self.0.lock().unwrap();
        (state.trust_domain == *trust_domain).then(|| Arc::new(state.bundle.x509_bundle()))
    }
}

/// A running server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct FakeServer {
    pub(crate) port: u16,
    pub(crate) state: Arc<Mutex<State>>,
    /// Its own clock, by which it judges the certificates of its clients.
    pub(crate) clock: MovedClock,
    certificate: Arc<CertResolver>,
    /// Ends every connection.
    cut: broadcast::Sender<()>,
    pub(crate) events: broadcast::Sender<WatchEvent>,
}

pub(crate) fn denied(reason: types::permission_denied_details::Reason) -> Status {
    use prost::Message as _;
    let details = tonic_types::pb::Status {
        code: 7,
        message: "denied".into(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
            value: types::PermissionDeniedDetails {
                reason: reason.into(),
            }
            .encode_to_vec(),
        }],
    };
    Status::with_details(
        Code::PermissionDenied,
        "denied",
        details.encode_to_vec().into(),
    )
}

async fn accept(listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor, server: FakeServer) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(acceptor.clone(), stream, server.clone()));
    }
}

async fn converse(acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream, server: FakeServer) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut cut = server.cut.subscribe();
    let service = hyper::service::service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => drop(ended.ok()),
        _cut = cut.recv() => {}
    }
}

fn attest_answer(step: Answer) -> agent_v1::AttestAgentResponse {
    agent_v1::AttestAgentResponse { step: Some(step) }
}

fn unary<T>(answer: Result<T, Status>) -> std::future::Ready<Result<tonic::Response<T>, Status>> {
    std::future::ready(answer.map(tonic::Response::new))
}

impl FakeServer {
    pub(crate) async fn start(name: &str) -> Self {
        let trust_domain = TrustDomain::parse(name).unwrap();
        let authority = Authority::new(&trust_domain);
        let mut bundle = Bundle::new(trust_domain.clone());
        bundle.add_x509_authority(authority.certificate.clone());
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: "k1".into(),
            public_key: authority.key.public_key().clone(),
            expires_at: None,
            tainted: false,
            source: spiffe::bundle::AuthoritySource::Unknown,
        });
        let state = State {
            trust_domain: trust_domain.clone(),
            authority: authority.clone(),
            tokens: BTreeMap::from([
                ("good".to_owned(), TokenState::Good),
                ("used".to_owned(), TokenState::Used),
                ("late".to_owned(), TokenState::Expired),
            ]),
            entries: BTreeMap::new(),
            federated: BTreeMap::new(),
            federated_as_sent: BTreeMap::new(),
            bundle,
            watch: false,
            svid_life: Duration::from_secs(3600),
            agent_life: Duration::from_secs(3600),
            faults: BTreeMap::new(),
            verdict: None,
            refused: BTreeSet::new(),
            calls: BTreeMap::new(),
            revision: 1,
            challenges: Vec::new(),
            attestation_gate: None,
            when_redeemed: None,
            streams: 0,
        };
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let leaf = authority.issue(&SpiffeId::server(&trust_domain), key.public_key(), OWN_LIFE);
        let certificate = Arc::new(CertResolver::new());
        certificate.set([leaf.der()], &key).unwrap();
        let state = Arc::new(Mutex::new(state));
        let clock = MovedClock::default();
        let clients = SpiffeClientVerifier::optional(Arc::new(OwnBundle(Arc::clone(&state))));
        let tls = server_config(
            Arc::clone(&certificate),
            Some(Arc::new(clients)),
            Arc::new(clock.clone()),
            KeyExchange::default(),
        )
        .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            state,
            certificate,
            clock,
            events: broadcast::Sender::new(64),
            cut: broadcast::Sender::new(1),
        };
        tokio::spawn(accept(listener, acceptor, server.clone()));
        server
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// From the next handshake on the server is one of another authority.
    pub(crate) fn show_certificate_of_another_authority(&self) -> Authority {
        let trust_domain = self.state.lock().unwrap().trust_domain.clone();
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let authority = Authority::new(&trust_domain);
        let leaf = authority.issue(&SpiffeId::server(&trust_domain), key.public_key(), OWN_LIFE);
        self.certificate.set([leaf.der()], &key).unwrap();
        authority
    }

    /// Ends every connection, as a restart does.
    pub(crate) fn cut_connections(&self) {
        self.cut.send(()).ok();
    }

    pub(crate) fn calls(&self, method: &str) -> usize {
        self.state
            .lock()
            .unwrap()
            .calls
            .get(method)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn fault(&self, method: &'static str, status: Status) {
        self.change(|state| state.faults.entry(method).or_default().push_back(status));
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each method")]
    async fn answer(self, request: Request<Incoming>) -> Response<tonic::body::Body> {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        {
            let mut state = self.state.lock().unwrap();
            *state.calls.entry(method.clone()).or_default() += 1;
            if let Some(status) = state
                .faults
                .get_mut(method.as_str())
                .and_then(VecDeque::pop_front)
            {
                return status.into_http();
            }
            if !matches!(method.as_str(), "AttestAgent" | "GetBundle")
                && let Some(status) = &state.verdict
            {
                return status.clone().into_http();
            }
        }
        match method.as_str() {
            "AttestAgent" => {
                let call = service_fn(
                    |request: tonic::Request<Streaming<agent_v1::AttestAgentRequest>>| {
                        self.clone().attest(request.into_inner())
                    },
                );
                Grpc::new(ProstCodec::default())
                    .streaming(call, request)
                    .await
            }
            "GetBundle" => {
                let call = service_fn(|_: tonic::Request<bundle_v1::GetBundleRequest>| {
                    unary(Ok(self.bundle()))
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "GetFederatedBundle" => {
                let call = service_fn(
                    |request: tonic::Request<bundle_v1::GetFederatedBundleRequest>| {
                        unary(self.federated(&request.get_ref().trust_domain))
                    },
                );
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "PostStatus" => {
                let call = service_fn(|_: tonic::Request<agent_v1::PostStatusRequest>| {
                    unary(Ok(agent_v1::PostStatusResponse {}))
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "RenewAgent" => {
                let call = service_fn(|request: tonic::Request<agent_v1::RenewAgentRequest>| {
                    unary(Ok(self.renew(request.get_ref())))
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "BatchNewX509SVID" => {
                let call = service_fn(
                    |request: tonic::Request<svid_v1::BatchNewX509svidRequest>| {
                        unary(Ok(self.x509_svids(request.get_ref())))
                    },
                );
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "NewJWTSVID" => {
                let call = service_fn(|request: tonic::Request<svid_v1::NewJwtsvidRequest>| {
                    unary(self.jwt_svid(request.get_ref()))
                });
                Grpc::new(ProstCodec::default()).unary(call, request).await
            }
            "SyncAuthorizedEntries" => {
                let call = service_fn(
                    |request: tonic::Request<Streaming<entry_v1::SyncAuthorizedEntriesRequest>>| {
                        self.clone().sync(request.into_inner())
                    },
                );
                Grpc::new(ProstCodec::default())
                    .streaming(call, request)
                    .await
            }
            "Watch" if self.state.lock().unwrap().watch => {
                let call = service_fn(|request: tonic::Request<WatchRequest>| {
                    std::future::ready(Ok(tonic::Response::new(self.follow(request.get_ref()))))
                });
                Grpc::new(ProstCodec::default())
                    .server_streaming(call, request)
                    .await
            }
            _ => Status::unimplemented("unknown service").into_http(),
        }
    }

    fn bundle(&self) -> types::Bundle {
        proto::convert::bundle_to_wire(&self.state.lock().unwrap().bundle, None)
    }

    fn federated(&self, name: &str) -> Result<types::Bundle, Status> {
        let state = self.state.lock().unwrap();
        if let Some(sent) = state.federated_as_sent.get(name) {
            return Ok(sent.clone());
        }
        state
            .federated
            .get(name)
            .map(|bundle| proto::convert::bundle_to_wire(bundle, None))
            .ok_or_else(|| Status::not_found("bundle not found"))
    }

    fn agent_svid(&self, csr: &[u8], path: &str) -> types::X509svid {
        let state = self.state.lock().unwrap();
        let id = SpiffeId::from_path(&state.trust_domain, path).unwrap();
        let leaf = state.authority.issue(
            &id,
            &Csr::public_key_unverified(csr).unwrap(),
            state.agent_life,
        );
        types::X509svid {
            cert_chain: vec![leaf.der().to_vec()],
            id: Some(proto::convert::spiffe_id_to_wire(&id)),
            ..Default::default()
        }
    }

    async fn attest(
        self,
        mut requests: Streaming<agent_v1::AttestAgentRequest>,
    ) -> Result<tonic::Response<Messages<agent_v1::AttestAgentResponse>>, Status> {
        let Some(Step::Params(params)) = requests.message().await?.and_then(|request| request.step)
        else {
            return Err(Status::invalid_argument("no params"));
        };
        let data = params.data.unwrap();
        let payload = String::from_utf8(data.payload).unwrap();
        let repeatable = data.r#type == "repeatable";
        if !repeatable {
            self.redeem(&payload)?;
        }
        let gate = self.state.lock().unwrap().attestation_gate.clone();
        if let Some(mut gate) = gate {
            gate.wait_for(|open| *open).await.ok();
        }
        let csr = params.params.unwrap().csr;
        let challenges = self.state.lock().unwrap().challenges.clone();
        let (answers, outgoing) = mpsc::channel(1);
        tokio::spawn(async move {
            for challenge in challenges {
                let asked = Answer::Challenge(challenge.clone());
                answers.send(Ok(attest_answer(asked))).await.ok();
                let answered = requests.message().await.ok().flatten();
                let expected: Vec<u8> = challenge.into_iter().rev().collect();
                if answered.and_then(|answer| answer.step)
                    != Some(Step::ChallengeResponse(expected))
                {
                    let refusal = Status::permission_denied("wrong answer");
                    answers.send(Err(refusal)).await.ok();
                    return;
                }
            }
            let kind = if repeatable {
                "repeatable"
            } else {
                "join_token"
            };
            let svid = self.agent_svid(&csr, &format!("/spire/agent/{kind}/{payload}"));
            let result = agent_v1::attest_agent_response::Result {
                svid: Some(svid),
                reattestable: repeatable,
            };
            let result = attest_answer(Answer::Result(result));
            answers.send(Ok(result)).await.ok();
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(
            outgoing,
        ))))
    }

    fn redeem(&self, token: &str) -> Result<(), Status> {
        let mut state = self.state.lock().unwrap();
        let outcome = match state.tokens.get_mut(token) {
            Some(token @ TokenState::Good) => {
                *token = TokenState::Used;
                Ok(())
            }
            Some(TokenState::Expired) => Err(Status::invalid_argument("join token expired")),
            _ => Err(Status::invalid_argument(
                "failed to attest: join token does not exist or has already been used",
            )),
        };
        if outcome.is_ok()
            && let Some(and_then) = state.when_redeemed.take()
        {
            and_then();
        }
        outcome
    }

    fn renew(&self, request: &agent_v1::RenewAgentRequest) -> agent_v1::RenewAgentResponse {
        let svid = self.agent_svid(
            &request.params.as_ref().unwrap().csr,
            "/spire/agent/join_token/good",
        );
        agent_v1::RenewAgentResponse { svid: Some(svid) }
    }

    fn x509_svids(
        &self,
        request: &svid_v1::BatchNewX509svidRequest,
    ) -> svid_v1::BatchNewX509svidResponse {
        let state = self.state.lock().unwrap();
        let one = |params: &svid_v1::NewX509svidParams| {
            let Some(entry) = state
                .entries
                .get(&params.entry_id)
                .filter(|entry| !state.refused.contains(&*entry.id))
            else {
                let status = types::Status {
                    code: 5,
                    message: "entry not found or not authorized".into(),
                };
                return svid_v1::batch_new_x509svid_response::Result {
                    status: Some(status),
                    svid: None,
                };
            };
            let key = Csr::parse_and_verify(&params.csr)
                .unwrap()
                .public_key()
                .clone();
            let leaf = state
                .authority
                .issue(&entry.spiffe_id, &key, state.svid_life);
            let svid = types::X509svid {
                cert_chain: vec![leaf.der().to_vec()],
                id: Some(proto::convert::spiffe_id_to_wire(&entry.spiffe_id)),
                ..Default::default()
            };
            svid_v1::batch_new_x509svid_response::Result {
                status: Some(types::Status::default()),
                svid: Some(svid),
            }
        };
        svid_v1::BatchNewX509svidResponse {
            results: request.params.iter().map(one).collect(),
        }
    }

    fn jwt_svid(
        &self,
        request: &svid_v1::NewJwtsvidRequest,
    ) -> Result<svid_v1::NewJwtsvidResponse, Status> {
        let state = self.state.lock().unwrap();
        let entry = state
            .entries
            .get(&request.entry_id)
            .ok_or_else(|| Status::not_found("entry not found or not authorized"))?;
        let now = unix_seconds(SystemClock.now());
        let claims = JwtClaims {
            subject: entry.spiffe_id.clone(),
            audience: request.audience.clone(),
            issued_at: now,
            expires_at: now + 300,
            issuer: None,
            jti: None,
            extra: serde_json::Map::new(),
        };
        let token = sign_jwt_svid(&claims, "k1", JwsAlgorithm::ES256, &state.authority.key)
            .now_or_never()
            .unwrap()
            .unwrap();
        let id = Some(proto::convert::spiffe_id_to_wire(&entry.spiffe_id));
        Ok(svid_v1::NewJwtsvidResponse {
            svid: Some(types::Jwtsvid {
                token: token.expose().clone(),
                id,
                issued_at: now,
                expires_at: now + 300,
                hint: String::new(),
            }),
        })
    }

    /// Pages of two, so that small tests see pages.
    async fn sync(
        self,
        mut requests: Streaming<entry_v1::SyncAuthorizedEntriesRequest>,
    ) -> Result<tonic::Response<Messages<entry_v1::SyncAuthorizedEntriesResponse>>, Status> {
        const PAGE: usize = 2;
        let first = requests.message().await?.unwrap();
        assert!(first.ids.is_empty() && first.output_mask.unwrap().revision_number);
        let mask = first.output_mask;
        let entries: Vec<Arc<Entry>> = self
            .state
            .lock()
            .unwrap()
            .entries
            .values()
            .cloned()
            .collect();
        let wire = move |entry: &Arc<Entry>| proto::convert::entry_to_wire(entry, mask.as_ref());
        if entries.len() <= PAGE {
            let answer = entry_v1::SyncAuthorizedEntriesResponse {
                entries: entries.iter().map(wire).collect(),
                ..Default::default()
            };
            return Ok(tonic::Response::new(Box::pin(tokio_stream::once(Ok(
                answer,
            )))));
        }
        let revision = |entry: &Arc<Entry>| entry_v1::EntryRevision {
            id: entry.id.to_string(),
            revision_number: entry.revision_number,
            created_at: entry.created_at,
        };
        let pages = entries.chunks(PAGE).count();
        let revisions: Vec<_> = entries
            .chunks(PAGE)
            .enumerate()
            .map(|(number, page)| {
                Ok(entry_v1::SyncAuthorizedEntriesResponse {
                    entry_revisions: page.iter().map(revision).collect(),
                    more: number + 1 < pages,
                    ..Default::default()
                })
            })
            .collect();
        let full = requests.flat_map(move |request| {
            let ids = request.map(|request| request.ids).unwrap_or_default();
            let found: Vec<Arc<Entry>> = entries
                .iter()
                .filter(|entry| ids.contains(&entry.id.to_string()))
                .cloned()
                .collect();
            let pages = found.chunks(PAGE).count();
            let answers: Vec<_> = found
                .chunks(PAGE)
                .enumerate()
                .map(|(number, page)| {
                    Ok(entry_v1::SyncAuthorizedEntriesResponse {
                        entries: page.iter().map(&wire).collect(),
                        more: number + 1 < pages,
                        ..Default::default()
                    })
                })
                .collect();
            tokio_stream::iter(answers)
        });
        Ok(tonic::Response::new(Box::pin(
            tokio_stream::iter(revisions).chain(full),
        )))
    }

    /// Everything first, unless the cursor is current, then what the test sends.
    fn follow(&self, request: &WatchRequest) -> Messages<WatchEvent> {
        let mut state = self.state.lock().unwrap();
        let current = request.cursor == state.revision && request.epoch == "e1";
        let first = WatchEvent {
            revision: state.revision,
            epoch: "e1".into(),
            reset: true,
            entries: state
                .entries
                .values()
                .map(|entry| proto::convert::entry_to_wire(entry, None))
                .collect(),
            bundles: vec![proto::convert::bundle_to_wire(&state.bundle, None)],
            ..Default::default()
        };
        let later = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe())
            .map(|event| event.map_err(|_lagged| Status::unavailable("lagged")));
        state.streams += 1;
        if current {
            Box::pin(later)
        } else {
            Box::pin(tokio_stream::once(Ok(first)).chain(later))
        }
    }
}
