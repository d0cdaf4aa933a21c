//! A TCP proxy before a database, which can cut it off or hold its answers back: faults as a network makes them.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// Connections stay, and new ones are accepted, but nothing comes through: a server under SIGSTOP.
    Frozen,
    /// Connections break, and new ones at once: a server that is stopped.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    /// The given URL with the proxy's address.
    pub(crate) url: String,
    pub(crate) direct_url: String,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    pub(crate) async fn before(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, path) = rest.split_once('/').unwrap();
        let (user, address) = authority.rsplit_once('@').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Open);
        let (modes, address) = (mode.subscribe(), address.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, address.clone(), modes.clone()));
            }
        });
        Self {
            url: format!("{scheme}://{user}@{own}/{path}"),
            direct_url: url.to_owned(),
            mode,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn forward(client: TcpStream, address: String, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow() == Mode::Stopped {
        return;
    }
    let server = TcpStream::connect(address).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (one, other) = (modes.clone(), modes.clone());
    tokio::select! {
        () = copy(&mut from_client, &mut to_server, one) => {}
        () = copy(&mut from_server, &mut to_client, other) => {}
        _ = modes.wait_for(|mode| *mode == Mode::Stopped) => {}
    }
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut modes: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if modes.wait_for(|mode| *mode == Mode::Open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
