//! The admin socket: a Unix socket whose callers are administrators because they may open it.

use std::path::Path;
use std::sync::Arc;

use config::fault::{Code, Fault};
use daemon::log_limit::LogLimit;
use daemon::socket::{Modes, Socket, SocketFile};
use plugin::workload_attestor::Peer;
use proto::authority_filter::AuthorityFilter;
use tokio::net::{UnixListener, UnixStream};

use super::admission::{Admission, Capacity, Slot};
use super::{FailedAccepts, Serving, serve_connection};
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
        let failed_accepts = FailedAccepts::default();
        let log_limit = LogLimit::default();
        let mut shutdown = serving.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = async {
                    connections.settled().await;
                    self.listener.accept().await
                } => accepted,
            };
            match accepted {
                Ok((stream, _)) => admit(stream, &mut connections, &serving, &log_limit),
                Err(error) => failed_accepts.pause_after(&error, &mut shutdown).await,
            }
        }
        drop(self);
        connections.all_ended().await;
    }
}

/// `log_limit` is for the lines that users of the socket cause, by user.
fn admit(
    stream: UnixStream,
    connections: &mut Admission,
    serving: &Serving,
    log_limit: &LogLimit<Option<u32>>,
) {
    let peer = match stream.peer_cred() {
        // The kernel's record of who connected; what is read by the process's number later needs the hold on it.
        Ok(credentials) => LocalPeer {
            uid: credentials.uid(),
            gid: credentials.gid(),
            process: Peer::from_unix_stream(&stream).ok().map(Arc::new),
        },
        Err(error) => {
            if let Some(left_out) = log_limit.admit(&None) {
                tracing::warn!(%error, left_out, "refusing a connection on the admin socket: the system does not say whose it is");
            }
            return;
        }
    };
    let (uid, of_connection) = (peer.uid, serving.clone());
    let serve = |slot| serve(stream, peer, slot, of_connection);
    let admitted = connections.spawn(Account::Uid(uid), Class::Local, serve);
    serving.count("admin", if admitted { "accepted" } else { "refused" });
    if !admitted && let Some(left_out) = log_limit.admit(&Some(uid)) {
        tracing::warn!(
            most = MAX_CONNECTIONS,
            uid,
            left_out,
            "refusing a connection on the admin socket: too many"
        );
    }
}

async fn serve(stream: UnixStream, peer: LocalPeer, slot: Arc<Slot>, serving: Serving) {
    let budget = slot.enter(Account::Uid(peer.uid), Class::Local);
    let connection = Connection::new(Principal::Local(peer), None, budget, slot.closing());
    let stream = AuthorityFilter::new(stream);
    // Who may open the socket is asked when it is opened.
    let withdrawn = std::future::pending();
    serve_connection(stream, connection, slot, serving, withdrawn).await;
}
