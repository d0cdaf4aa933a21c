//! The admin socket: a Unix socket whose callers are administrators because they may open it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::fault::{Code, Fault};
use proto::authority_filter::AuthorityFilter;
use tokio::net::{UnixListener, UnixStream};

use super::lines::{Line, Lines};
use super::{Serving, pause_after_failed_accept, serve_connection};
use crate::caller::Peer;

/// SPIRE's modes: the group of the socket's directory may administer the server, others may not.
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o770;
const MAX_CONNECTIONS: usize = 1_024;

/// A bound admin socket. Dropping it removes the file, unless somebody else's has taken its place.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Binds the socket, in place of a stale one if there is one.
///
/// # Errors
/// When a live server listens there, the path is not a socket, or the directory cannot be written.
pub(crate) fn bind(path: &Path) -> Result<AdminSocket, Fault> {
    make_directory(path)?;
    remove_stale(path)?;
    let fault = |error: std::io::Error| {
        Fault::new(Code::SocketUnusable, format!("cannot listen on the admin socket {}", path.display()))
            .because(error.to_string())
            .hint("give the server's user write access to that directory, or set socket_path to another place")
    };
    let listener = UnixListener::bind(path).map_err(fault)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(fault)?;
    let inode = fs::symlink_metadata(path).map_err(fault)?.ino();
    Ok(AdminSocket {
        listener,
        path: path.to_owned(),
        inode,
    })
}

fn make_directory(path: &Path) -> Result<(), Fault> {
    let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    else {
        return Ok(());
    };
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(|error| {
        Fault::new(Code::SocketUnusable, format!("cannot make the admin socket's directory {}", directory.display()))
            .because(error.to_string())
            .hint("make the directory and give the server's user write access to it, or set socket_path to another place")
    })
}

/// Nobody answers on a stale socket; whoever answers on a live one keeps it.
fn remove_stale(path: &Path) -> Result<(), Fault> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(Fault::new(
            Code::SocketUnusable,
            format!("{} is in the admin socket's place", path.display()),
        )
        .because("it is not a socket")
        .hint("move it away, or set socket_path to another place"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(Fault::new(
            Code::SocketInUse,
            format!("the admin socket {} is in use", path.display()),
        )
        .because("a server is listening on it")
        .hint("stop that server, or set socket_path to another place")),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            tracing::info!(path = %path.display(), "removing the stale admin socket of a server that is gone");
            drop(fs::remove_file(path));
            Ok(())
        }
        Err(error) => Err(Fault::new(
            Code::SocketUnusable,
            format!("cannot tell who uses {}", path.display()),
        )
        .because(error.to_string())
        .hint("remove the file if no server uses it, or set socket_path to another place")),
    }
}

impl AdminSocket {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts until the server stops, then waits for the connections to end.
    pub(crate) async fn run(self, serving: Serving) {
        let mut connections = Lines::at_most(MAX_CONNECTIONS);
        let mut shutdown = serving.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let serving = serving.clone();
                    let serve = |line| serve(stream, line, serving);
                    if !connections.spawn(None, serve).await {
                        tracing::warn!(
                            most = MAX_CONNECTIONS,
                            "refusing a connection on the admin socket: too many"
                        );
                    }
                }
                Err(error) => pause_after_failed_accept(&error, &mut shutdown).await,
            }
        }
        drop(self);
        connections.all_ended().await;
    }
}

async fn serve(stream: UnixStream, line: Arc<Line>, serving: Serving) {
    let credentials = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "refusing a connection on the admin socket: the system does not say whose it is");
            return;
        }
    };
    let peer = Peer::Local {
        pid: credentials.pid(),
        uid: credentials.uid(),
        gid: credentials.gid(),
    };
    serve_connection(AuthorityFilter::new(stream), peer, line, serving).await;
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours {
            drop(fs::remove_file(&self.path));
        }
    }
}
