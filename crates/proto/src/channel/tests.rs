//! Channels to servers that are there, that are not, and that cannot be trusted.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    ChannelError, Keepalive, TlsDialer, TokioIo, connect_tls, connect_uds, lazy_tls, lazy_uds,
};
use crate::go_plugin::{
    Empty,
    grpc_controller_client::GrpcControllerClient,
    grpc_controller_server::{GrpcController, GrpcControllerServer},
};

struct Plugin;

#[tonic::async_trait]
impl GrpcController for Plugin {
    async fn shutdown(
        &self,
        _: tonic::Request<Empty>,
    ) -> Result<tonic::Response<Empty>, tonic::Status> {
        Ok(tonic::Response::new(Empty {}))
    }
}

/// A TLS server on a free port: its address, and the configuration of a client that trusts it.
pub(super) async fn tls_server() -> (SocketAddr, ClientConfig) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(issued.signing_key.serialize_der().into());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));

    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (address, client)
}

/// The address of a TLS server, and the configuration of a client that trusts another one.
pub(super) async fn untrusted_tls_server() -> (String, SocketAddr, ClientConfig) {
    let (address, _) = tls_server().await;
    let (_, config) = tls_server().await;
    (named(address), address, config)
}

/// The address by the name that is in the server's certificate.
fn named(address: SocketAddr) -> String {
    format!("localhost:{}", address.port())
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(stream) = acceptor.accept(tcp).await else {
            continue;
        };
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let service =
            hyper_util::service::TowerToHyperService::new(GrpcControllerServer::new(Plugin));
        let builder =
            hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
    }
}

#[tokio::test]
async fn calls_over_tls_at_once_and_lazily() {
    let (address, config) = tls_server().await;
    let address = named(address);
    let channel = connect_tls(&address, config.clone()).await.unwrap();
    GrpcControllerClient::new(channel)
        .shutdown(Empty {})
        .await
        .unwrap();
    let channel = lazy_tls(&address, Arc::new(config)).unwrap();
    GrpcControllerClient::new(channel)
        .shutdown(Empty {})
        .await
        .unwrap();
}

#[tokio::test]
async fn says_that_the_server_is_not_trusted() {
    let (address, _, config) = untrusted_tls_server().await;
    let error = connect_tls(&address, config).await.unwrap_err().to_string();
    let expected = format!("could not connect to {address}: invalid peer certificate: ");
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn refuses_what_is_no_address() {
    let (_, config) = tls_server().await;
    for address in [
        "localhost",
        "localhost:",
        "localhost:70000",
        ":8081",
        "a b:1",
    ] {
        let error = lazy_tls(address, config.clone()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("address {address:?} is not host:port")
        );
    }
    for address in ["localhost:1", "127.0.0.1:1", "[::1]:1"] {
        lazy_tls(address, config.clone()).unwrap();
    }
}

#[tokio::test]
async fn says_why_there_is_no_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nobody.sock");
    let error = connect_uds(&path).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "could not connect to {}: No such file or directory (os error 2)",
            path.display()
        )
    );
    assert!(matches!(
        error,
        ChannelError::Connect {
            kind: Some(ErrorKind::NotFound),
            ..
        }
    ));
}

#[tokio::test]
async fn a_lazy_channel_fails_with_the_first_request() {
    let directory = tempfile::tempdir().unwrap();
    let channel = lazy_uds(directory.path().join("nobody.sock"));
    let status = GrpcControllerClient::new(channel)
        .shutdown(Empty {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_server_that_stops_reading_is_given_up_while_a_call_is_open() {
    let (address, config) = tls_server().await;
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = hung.local_addr().unwrap();
    let (freeze, mut frozen) = tokio::sync::watch::channel(false);
    // What lies between client and server passes everything on, until it is frozen.
    tokio::spawn(async move {
        while let Ok((mut client, _)) = hung.accept().await {
            let mut server = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::select! {
                _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = async { drop(frozen.wait_for(|frozen| *frozen).await.unwrap()) } => {}
            }
            // Both connections stay open, and nobody reads.
            std::future::pending::<()>().await;
        }
    });
    let mut dialer = TlsDialer::new(&named(between), Arc::new(config)).unwrap();
    dialer.keepalive = Keepalive {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
    };
    let mut client = GrpcControllerClient::new(dialer.lazy());
    client.shutdown(Empty {}).await.unwrap();
    freeze.send_replace(true);
    let status = tokio::time::timeout(Duration::from_secs(20), client.shutdown(Empty {}))
        .await
        .expect("the call ends without a deadline of its own")
        .unwrap_err();
    assert!(
        format!("{status:?}").contains("KeepAliveTimedOut"),
        "{status:?}"
    );
}
