//! Listens for the commits of other servers, on a connection that does nothing else.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::AsyncMessage;

use super::connect::Connector;
use super::session::{Session, fault};
use super::{CHANNEL, DatastoreError, PAUSES};

/// Stops listening when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    heard: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(connector: Arc<Connector>) -> Self {
        let (hear, heard) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut pause = PAUSES.0;
            // One line when it breaks, not one for each attempt.
            let mut is_known = false;
            loop {
                let began = tokio::time::Instant::now();
                let ended = listen(&connector, &hear).await;
                if began.elapsed() > PAUSES.1 {
                    pause = PAUSES.0;
                    is_known = false;
                }
                if let (Err(error), false) = (ended, is_known) {
                    tracing::info!(%error, "change notifications unavailable; polling instead");
                    is_known = true;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        });
        Self { heard, task }
    }

    /// Returns when a revision other than `known` is announced that was not seen by an earlier call.
    pub(super) async fn heard_other_than(&mut self, known: u64) {
        while self.heard.changed().await.is_ok() {
            if *self.heard.borrow_and_update() != known {
                return;
            }
        }
        // The task is gone: the caller's own time limit wakes it.
        std::future::pending::<()>().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(connector: &Connector, hear: &watch::Sender<u64>) -> Result<(), DatastoreError> {
    let (client, mut connection) = connector.raw().await?;
    let session = Session::new(client);
    let messages = async {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    let revision = notification.payload().parse().unwrap_or(u64::MAX);
                    hear.send_replace(revision);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(fault(&error)),
                None => return Ok(()),
            }
        }
    };
    let keep = async {
        session.run(&format!("LISTEN {CHANNEL}")).await?;
        // A connection that says nothing for long may be dead: ask now and then.
        loop {
            tokio::time::sleep(Duration::from_secs(30)).await;
            session.run("").await?;
        }
    };
    tokio::select! {
        ended = messages => ended,
        failed = keep => failed,
    }
}
