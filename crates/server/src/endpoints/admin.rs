//! The admin socket: a Unix socket whose callers are administrators because they may open it.

use std::path::Path;
use std::sync::Arc;

use config::fault::{Code, Fault};
use daemon::socket::{Modes, Socket, SocketFile};
use proto::authority_filter::AuthorityFilter;
use tokio::net::{UnixListener, UnixStream};

use super::admission::{Admission, Capacity, Slot};
use super::{Serving, pause_after_failed_accept, serve_connection};
use crate::caller::Connection;
use crate::principal::{Account, Class, LocalPeer, Principal};

const MAX_CONNECTIONS: usize = 1_024;

/// A bound admin socket.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Binds the socket. SPIRE: the group of the socket's directory may administer the server, others may not.
///
/// # Errors
/// As [`Socket::bind`].
pub(crate) fn bind(path: &Path) -> Result<AdminSocket, Fault> {
    let (listener, file) = Socket::bind(path, Modes::ADMIN)?.into_parts();
    let listener = UnixListener::from_std(listener).map_err(|error| {
        Fault::new(Code::Internal, "cannot serve the admin socket").because(error)
    })?;
    Ok(AdminSocket { listener, file })
}

impl AdminSocket {
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Accepts until the server stops, then waits for the connections to end.
    pub(crate) async fn run(self, serving: Serving) {
        let mut connections = Admission::new(Capacity::of(MAX_CONNECTIONS));
        let mut shutdown = serving.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => admit(stream, &mut connections, &serving),
                Err(error) => pause_after_failed_accept(&error, &mut shutdown).await,
            }
        }
        drop(self);
        connections.all_ended().await;
    }
}

fn admit(stream: UnixStream, connections: &mut Admission, serving: &Serving) {
    let peer = match stream.peer_cred() {
        Ok(credentials) => LocalPeer {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
        },
        Err(error) => {
            tracing::warn!(%error, "refusing a connection on the admin socket: the system does not say whose it is");
            return;
        }
    };
    let serving = serving.clone();
    let serve = |slot| serve(stream, peer, slot, serving);
    if !connections.spawn(Account::Uid(peer.uid), Class::Local, serve) {
        tracing::warn!(
            most = MAX_CONNECTIONS,
            "refusing a connection on the admin socket: too many"
        );
    }
}

async fn serve(stream: UnixStream, peer: LocalPeer, slot: Arc<Slot>, serving: Serving) {
    let budget = slot.enter(Account::Uid(peer.uid), Class::Local);
    let connection = Connection::new(Principal::Local(peer), None, budget, slot.closing());
    serve_connection(AuthorityFilter::new(stream), connection, slot, serving).await;
}
