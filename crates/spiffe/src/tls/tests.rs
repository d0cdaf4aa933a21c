use super::*;
use crate::clock::ManualClock;
use crate::id::SpiffeId;
use crate::key::{KeyPair, KeyType};
use crate::svid::x509::BundleSource;
use crate::trust_domain::TrustDomain;
use crate::x509::Certificate;
use crate::x509::testing::{Bundles, CLIENT_AUTH, Ca, CertTemplate, NOW, now};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName};

const SERVER: &str = "spiffe://example.org/spire/server";
const CLIENT: &str = "spiffe://example.org/w";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::new(now()))
}

/// A resolver that shows a certificate of `template` by `ca`.
fn showing(ca: &Ca, template: &CertTemplate) -> Arc<CertResolver> {
    let resolver = CertResolver::new();
    show(&resolver, ca, template);
    Arc::new(resolver)
}

fn show(resolver: &CertResolver, ca: &Ca, template: &CertTemplate) {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let der = template.sign(key.public_key(), &ca.subject, &ca.key);
    resolver.set([der.as_slice()], &key).unwrap();
}

/// One trust domain with a server and a client, each of which a test may change.
struct Pair {
    ca: Ca,
    bundles: Arc<dyn BundleSource>,
    expected: Expected,
    server: Arc<CertResolver>,
    client: Option<Arc<CertResolver>>,
    clients: Option<Arc<SpiffeClientVerifier>>,
}

impl Pair {
    fn new() -> Self {
        let ca = Ca::root("example.org");
        let bundles: Arc<dyn BundleSource> = Arc::new(Bundles::of(&[("example.org", &[&ca])]));
        Self {
            server: showing(&ca, &CertTemplate::leaf(SERVER)),
            client: Some(showing(&ca, &CertTemplate::leaf(CLIENT))),
            clients: Some(Arc::new(SpiffeClientVerifier::optional(Arc::clone(
                &bundles,
            )))),
            expected: Expected::Id(id(SERVER)),
            bundles,
            ca,
        }
    }

    fn client_config(&self, key_exchange: KeyExchange) -> Arc<ClientConfig> {
        let servers = SpiffeServerVerifier::new(self.expected.clone(), Arc::clone(&self.bundles));
        Arc::new(
            client_config(
                Arc::new(servers),
                self.client.clone(),
                clock(),
                key_exchange,
            )
            .unwrap(),
        )
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        let config = server_config(
            Arc::clone(&self.server),
            self.clients.clone(),
            clock(),
            KeyExchange::default(),
        );
        Arc::new(config.unwrap())
    }

    fn acceptor(&self) -> SpiffeAcceptor {
        let (resolver, clients) = (Arc::clone(&self.server), self.clients.clone().unwrap());
        SpiffeAcceptor::new(resolver, clients, clock(), KeyExchange::default())
    }

    fn connect(&self) -> Result<(ClientConnection, ServerConnection), Refusal> {
        handshake(
            &self.client_config(KeyExchange::default()),
            &self.server_config(),
        )
    }
}

/// Who gave up, and why.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    ByClient(String),
    ByServer(String),
}

/// Runs a handshake in memory.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), Refusal> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |rest| server.read_tls(rest).unwrap());
        server
            .process_new_packets()
            .map_err(|fault| Refusal::ByServer(fault.to_string()))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |rest| client.read_tls(rest).unwrap());
        client
            .process_new_packets()
            .map_err(|fault| Refusal::ByClient(fault.to_string()))?;
    }
    Ok((client, server))
}

fn feed(wire: &[u8], mut read: impl FnMut(&mut &[u8]) -> usize) {
    let mut rest = wire;
    while !rest.is_empty() {
        read(&mut rest);
    }
}

/// The name in the certificate that the other side showed.
fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let leaf = Certificate::from_der(certificates?.first()?).unwrap();
    leaf.uris().first().cloned()
}

#[track_caller]
fn client_refuses(pair: &Pair, because: &str) {
    match pair.connect() {
        Err(Refusal::ByClient(text)) => assert!(text.contains(because), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[track_caller]
fn server_refuses(pair: &Pair, because: &str) {
    match pair.connect() {
        Err(Refusal::ByServer(text)) => assert!(text.contains(because), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn both_sides_learn_who_the_other_is_over_http2() {
    let (client, server) = Pair::new().connect().unwrap();
    assert_eq!(peer_of(client.peer_certificates()).as_deref(), Some(SERVER));
    assert_eq!(peer_of(server.peer_certificates()).as_deref(), Some(CLIENT));
    assert_eq!(client.alpn_protocol(), Some(ALPN_H2));
}

#[test]
fn clients_may_come_without_certificate_unless_required() {
    let mut pair = Pair::new();
    pair.client = None;
    let (_, server) = pair.connect().unwrap();
    assert_eq!(server.peer_certificates(), None);
    pair.client = Some(Arc::new(CertResolver::new()));
    pair.connect().unwrap();
    pair.clients = Some(Arc::new(SpiffeClientVerifier::required(
        Expected::Any,
        Arc::clone(&pair.bundles),
    )));
    server_refuses(&pair, "peer sent no certificates");
    pair.clients = None;
    pair.connect().unwrap();
}

#[test]
fn clients_connect_only_to_whom_they_expect() {
    let mut pair = Pair::new();
    for wanted in [
        Expected::Any,
        Expected::MemberOf(td("example.org")),
        Expected::OneOf(vec![id(CLIENT), id(SERVER)]),
    ] {
        pair.expected = wanted;
        pair.connect().unwrap();
    }
    for unwanted in [
        Expected::Id(id(CLIENT)),
        Expected::MemberOf(td("other")),
        Expected::OneOf(vec![]),
        Expected::Id(id("spiffe://example.org/spire")),
    ] {
        pair.expected = unwanted;
        client_refuses(&pair, "Unexpected");
    }
}

#[test]
fn servers_take_only_whom_they_expect() {
    let mut pair = Pair::new();
    let bundles = Arc::clone(&pair.bundles);
    pair.clients = Some(Arc::new(SpiffeClientVerifier::required(
        Expected::Id(id(CLIENT)),
        Arc::clone(&bundles),
    )));
    pair.connect().unwrap();
    pair.clients = Some(Arc::new(SpiffeClientVerifier::required(
        Expected::Id(id(SERVER)),
        bundles,
    )));
    server_refuses(&pair, "Unexpected");
}

#[test]
fn sv_05_peers_of_unknown_or_foreign_authorities_are_refused() {
    let mut pair = Pair::new();
    let stranger = Ca::root("example.org");
    pair.server = showing(&stranger, &CertTemplate::leaf(SERVER));
    assert!(matches!(pair.connect(), Err(Refusal::ByClient(_))));
    let other = Ca::root("other");
    pair.server = showing(&other, &CertTemplate::leaf("spiffe://other/spire/server"));
    pair.expected = Expected::Any;
    client_refuses(&pair, "UnknownIssuer");

    let mut pair = Pair::new();
    pair.client = Some(showing(&other, &CertTemplate::leaf("spiffe://other/w")));
    server_refuses(&pair, "UnknownIssuer");
}

#[test]
fn xs_09_authorities_cannot_serve() {
    let mut pair = Pair::new();
    let resolver = CertResolver::new();
    resolver
        .set([pair.ca.der.as_slice()], &pair.ca.key)
        .unwrap();
    pair.server = Arc::new(resolver);
    client_refuses(&pair, "LeafIsAuthority");
}

#[test]
fn xs_18_xs_20_expired_and_one_sided_certificates_are_refused() {
    let mut pair = Pair::new();
    pair.server = showing(
        &pair.ca,
        &CertTemplate {
            not_after: NOW - 1,
            ..CertTemplate::leaf(SERVER)
        },
    );
    client_refuses(&pair, "is not valid after 1699999999 (1 seconds ago)");
    pair.server = showing(
        &pair.ca,
        &CertTemplate {
            not_before: NOW + 7200,
            not_after: NOW + 9000,
            ..CertTemplate::leaf(SERVER)
        },
    );
    client_refuses(&pair, "(7200 seconds in future)");
    pair.server = showing(
        &pair.ca,
        &CertTemplate {
            extended_key_usage: vec![CLIENT_AUTH],
            ..CertTemplate::leaf(SERVER)
        },
    );
    client_refuses(&pair, "InvalidPurpose");
}

/// The peer's identity as a server learns it.
fn accept(pair: &Pair) -> Result<Option<PeerIdentity>, Refusal> {
    let (config, peer) = pair.acceptor().begin().unwrap();
    let (_client, server) = handshake(&pair.client_config(KeyExchange::default()), &config)?;
    Ok(peer.identity(&server).unwrap())
}

#[test]
fn an_accepted_peer_is_whom_the_handshake_verified() {
    let mut pair = Pair::new();
    let peer = accept(&pair).unwrap().unwrap();
    assert_eq!(peer.id().as_str(), CLIENT);
    assert_eq!(peer.authority().der(), pair.ca.der);
    pair.client = None;
    assert!(accept(&pair).unwrap().is_none());
    pair.client = Some(showing(
        &Ca::root("example.org"),
        &CertTemplate::leaf(CLIENT),
    ));
    assert!(matches!(accept(&pair), Err(Refusal::ByServer(_))));
}

#[test]
fn nobody_is_identified_before_the_handshake_is_complete() {
    let (config, peer) = Pair::new().acceptor().begin().unwrap();
    let server = ServerConnection::new(config).unwrap();
    assert_eq!(peer.identity(&server).unwrap_err(), PeerError::Unfinished);
}

#[test]
fn nobody_is_identified_by_another_connection() {
    let pair = Pair::new();
    let client = pair.client_config(KeyExchange::default());
    let acceptor = pair.acceptor();
    let (config, first) = acceptor.begin().unwrap();
    let (_config, never_used) = acceptor.begin().unwrap();
    let (_, ours) = handshake(&client, &config).unwrap();
    // A connection that somebody else's verifier has accepted shows the same certificate.
    let (_, other) = handshake(&client, &pair.server_config()).unwrap();
    assert_eq!(
        never_used.identity(&other).unwrap_err(),
        PeerError::OtherConnection
    );
    let without = Pair {
        client: None,
        ..Pair::new()
    };
    let (_, nobody) = without.connect().unwrap();
    assert_eq!(
        first.identity(&nobody).unwrap_err(),
        PeerError::OtherConnection
    );
    assert_eq!(peer_of(ours.peer_certificates()).as_deref(), Some(CLIENT));
}

/// Shows the certificate of somebody else, whose key it does not have.
#[derive(Debug)]
struct Impostor(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Impostor {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[test]
fn a_verified_chain_without_its_key_is_no_peer() {
    let pair = Pair::new();
    let certificate = CertificateDer::from(pair.ca.issue(&CertTemplate::leaf(CLIENT)));
    let stranger = KeyPair::generate(KeyType::EcP256).unwrap();
    let pkcs8 = stranger.to_pkcs8_der().unwrap();
    let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8.expose().as_slice());
    let key = aws_lc_rs::sign::any_supported_type(&pkcs8.into()).unwrap();
    let key = rustls::sign::CertifiedKey::new(vec![certificate], key);
    let mut client = (*pair.client_config(KeyExchange::default())).clone();
    client.client_auth_cert_resolver = Arc::new(Impostor(Arc::new(key)));

    let (config, _peer) = pair.acceptor().begin().unwrap();
    match handshake(&Arc::new(client), &config) {
        Err(Refusal::ByServer(text)) => assert!(text.contains("BadSignature"), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn connections_are_never_resumed() {
    let pair = Pair::new();
    let (client, server) = (
        pair.client_config(KeyExchange::default()),
        pair.server_config(),
    );
    for _ in 0..2 {
        let (client, server) = handshake(&client, &server).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn the_key_exchange_is_post_quantum_and_can_be_required() {
    let pair = Pair::new();
    let (client, _) = pair.connect().unwrap();
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    let strict = pair.client_config(KeyExchange::RequirePostQuantum);
    handshake(&strict, &pair.server_config()).unwrap();

    let mut classical = (*aws_lc_rs::default_provider().kx_groups).to_vec();
    classical.retain(|group| !format!("{:?}", group.name()).contains("MLKEM"));
    let provider = CryptoProvider {
        kx_groups: classical,
        ..aws_lc_rs::default_provider()
    };
    let resolver = Arc::clone(&pair.server);
    let mut old = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    old.alpn_protocols = vec![ALPN_H2.to_vec()];
    let old = Arc::new(old);
    handshake(&strict, &old).unwrap_err();
    handshake(&pair.client_config(KeyExchange::default()), &old).unwrap();
}

#[test]
fn a_renewed_certificate_is_presented_on_the_next_connection() {
    let pair = Pair::new();
    let config = pair.server_config();
    let client = {
        let servers = SpiffeServerVerifier::new(Expected::Any, Arc::clone(&pair.bundles));
        Arc::new(client_config(Arc::new(servers), None, clock(), KeyExchange::default()).unwrap())
    };
    show(
        &pair.server,
        &pair.ca,
        &CertTemplate::leaf("spiffe://example.org/renewed"),
    );
    let (connection, _) = handshake(&client, &config).unwrap();
    assert_eq!(
        peer_of(connection.peer_certificates()).as_deref(),
        Some("spiffe://example.org/renewed")
    );
    pair.server.clear();
    handshake(&client, &config).unwrap_err();
}

#[test]
fn a_certificate_of_another_key_is_not_shown() {
    let pair = Pair::new();
    let stranger = KeyPair::generate(KeyType::EcP256).unwrap();
    let leaf = pair.ca.issue(&CertTemplate::leaf(SERVER));
    assert!(matches!(
        pair.server.set([leaf.as_slice()], &stranger),
        Err(ResolverError::Unusable(_))
    ));
    assert!(matches!(
        pair.server.set([], &stranger),
        Err(ResolverError::EmptyChain)
    ));
    pair.connect().unwrap();
}

#[test]
fn trust_on_first_use_still_wants_the_right_name_and_its_key() {
    let pair = Pair::new();
    let connect = |expected: Expected| {
        let servers = Arc::new(InsecureServerVerifier::new(expected));
        let config = insecure_client_config(servers, clock(), KeyExchange::default()).unwrap();
        handshake(&Arc::new(config), &pair.server_config()).map(|_| ())
    };
    show(
        &pair.server,
        &Ca::root("example.org"),
        &CertTemplate::leaf(SERVER),
    );
    assert_eq!(connect(Expected::Id(id(SERVER))), Ok(()));
    connect(Expected::Id(id(CLIENT))).unwrap_err();
}

#[test]
fn tls_1_2_peers_are_verified_too() {
    let pair = Pair::new();
    let mut config = (*pair.client_config(KeyExchange::default())).clone();
    let only_12 = ClientConfig::builder_with_details(
        crypto_provider(KeyExchange::default()),
        Arc::new(ClockTime(clock())),
    )
    .with_protocol_versions(&[&rustls::version::TLS12])
    .unwrap()
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(SpiffeServerVerifier::new(
        pair.expected.clone(),
        Arc::clone(&pair.bundles),
    )))
    .with_client_cert_resolver(pair.client.clone().unwrap());
    config.clone_from(&only_12);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let (_, server) = handshake(&Arc::new(config), &pair.server_config()).unwrap();
    assert_eq!(
        server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert_eq!(peer_of(server.peer_certificates()).as_deref(), Some(CLIENT));
}

#[test]
fn a_peer_with_more_certificates_than_a_chain_may_have_is_refused() {
    let mut pair = Pair::new();
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let leaf = CertTemplate::leaf(CLIENT).sign(key.public_key(), &pair.ca.subject, &pair.ca.key);
    let chain = std::iter::once(leaf.as_slice()).chain(vec![pair.ca.der.as_slice(); 19]);
    let resolver = CertResolver::new();
    resolver.set(chain, &key).unwrap();
    pair.client = Some(Arc::new(resolver));
    server_refuses(&pair, "ChainTooLong");
}
