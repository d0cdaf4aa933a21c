//! The one sign to stop that every task listens to.

use tokio::sync::watch;

/// Given to each task; all see the sign, also those that start to listen late.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// Gives the sign when asked to, or when dropped.
#[derive(Debug)]
pub(crate) struct Stopper(watch::Sender<bool>);

impl Stopper {
    pub(crate) fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Stop(receiver))
    }

    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns when the sign was given.
    pub(crate) async fn stopped(&mut self) {
        // An error means that the stopper is gone, which is a sign too.
        if self.0.wait_for(|stop| *stop).await.is_err() {
            tracing::trace!("the stopper is gone");
        }
    }

    /// Sleeps; false when the sign came first.
    pub(crate) async fn sleep(&mut self, span: std::time::Duration) -> bool {
        tokio::select! {
            () = self.stopped() => false,
            () = tokio::time::sleep(span) => true,
        }
    }
}
