//! Servers that are down, that hang, and that are not the right one, beside one that is well.

use std::net::TcpListener as StdListener;

use super::*;
use crate::channel::tests::{tls_server, untrusted_tls_server};

const LONG: Duration = Duration::from_secs(20);

/// So short that no test waits for what does not come; the address that is well stands last and has all the time.
const QUICK: AttemptDelays = AttemptDelays {
    connection: Duration::from_millis(20),
    handshake: Duration::from_millis(50),
};

fn nobody() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Connections are accepted by the kernel and read by nobody.
fn hanging() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The kernel answers no SYN, as a host that is powered off: the queue of this listener is full.
fn powered_off() -> (socket::Full, SocketAddr) {
    let full = socket::Full::new();
    let address = full.address();
    (full, address)
}

mod socket {
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::time::Duration;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
    };

    /// A listener whose queue is full.
    pub(super) struct Full {
        _listener: OwnedFd,
        _queued: Vec<TcpStream>,
        address: SocketAddr,
    }

    impl Full {
        pub(super) fn new() -> Self {
            let listener = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
            listen(&listener, Backlog::new(0).unwrap()).unwrap();
            let bound: SockaddrIn = getsockname(listener.as_raw_fd()).unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], bound.port()));
            let mut queued = Vec::new();
            while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100))
            {
                queued.push(stream);
            }
            Self {
                _listener: listener,
                _queued: queued,
                address,
            }
        }

        pub(super) fn address(&self) -> SocketAddr {
            self.address
        }
    }
}

async fn reached(addresses: Vec<SocketAddr>, mut config: ClientConfig) -> io::Result<SocketAddr> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let shaking = shake_hands(addresses.into(), QUICK, name, Arc::new(config));
    let (_, address) = tokio::time::timeout(LONG, shaking).await.unwrap()?;
    Ok(address)
}

#[tokio::test]
async fn a_server_that_is_well_is_reached_past_those_that_are_not() {
    let (well, config) = tls_server().await;
    let (_, untrusted, _) = untrusted_tls_server().await;
    let (_full, off) = powered_off();
    let (_held, hanging) = hanging();
    let down = nobody();
    for first in [
        vec![],
        vec![down],
        vec![off],
        vec![hanging],
        vec![untrusted],
        vec![off, down, hanging, untrusted],
    ] {
        let addresses = [first, vec![well]].concat();
        let reached = reached(addresses.clone(), config.clone()).await;
        assert_eq!(reached.unwrap(), well, "{addresses:?}");
    }
}

#[tokio::test]
async fn when_no_server_is_healthy_the_error_is_that_of_the_first_handshake() {
    let (_, untrusted, config) = untrusted_tls_server().await;
    let down = nobody();
    let error = reached(vec![down, untrusted, down], config.clone())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("invalid peer certificate"),
        "{error}"
    );
    let error = reached(vec![down, down], config).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn plain_connections_race_too() {
    let (_full, off) = powered_off();
    let (_held, well) = hanging();
    let mut addresses = VecDeque::from([off, nobody(), well]);
    let racing = race(&mut addresses, QUICK.connection);
    let (_, address) = tokio::time::timeout(LONG, racing).await.unwrap().unwrap();
    assert_eq!(address, well);
    let none = race(&mut VecDeque::new(), QUICK.connection).await;
    assert_eq!(none.unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn families_take_turns_in_the_resolvers_order() {
    let parse = |texts: &[&str]| -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
    let expected = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
    assert_eq!(families_in_turn(&found), expected);
    assert_eq!(
        families_in_turn(&parse(&["1.1.1.1:1"])),
        parse(&["1.1.1.1:1"])
    );
}

#[test]
fn the_address_of_the_connection_before_comes_last() {
    let dialer = Dialer::new("x:1");
    let [a, b, c] = ["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"].map(|text| text.parse().unwrap());
    assert_eq!(dialer.in_turn([a, b, c].into()), [a, b, c]);
    *dialer.last.lock().unwrap() = Some(a);
    assert_eq!(dialer.in_turn([a, b, c].into()), [b, c, a]);
    assert_eq!(dialer.in_turn([b, c].into()), [b, c]);
}
