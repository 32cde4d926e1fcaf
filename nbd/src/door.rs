//! Where clients come in: a thread of its own, which has less claim to the processor than those that serve.
//!
//! Anybody who reaches the socket can make a server accept, negotiate and refuse requests, as often as they like. On a
//! thread of its own that takes from the clients that are served no more than the kernel gives to that thread of a busy
//! processor, and that is a third of what a serving thread gets. A client stays here until it has asked for some bytes that
//! are there.

use rustix::process::nice;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// How much nicer the thread is than one that serves, which has three times its weight then (sched(7)).
const NICER: i32 = 5;

/// The thread. It ends, and with it all tasks on it, when this is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    runtime: Handle,
    _open: DropGuard,
}

impl Door {
    /// Starts the thread.
    pub(crate) fn open() -> io::Result<Door> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let door = runtime.handle().clone();
        let closed = CancellationToken::new();
        let open = closed.clone().drop_guard();
        std::thread::Builder::new().name("door".to_owned()).spawn(move || {
            // Of this thread alone, as Linux has it (setpriority(2), "C library/kernel differences").
            if let Err(error) = nice(NICER) {
                tracing::debug!(%error, "negotiation has the same claim to the processor as service");
            }
            runtime.block_on(closed.cancelled());
        })?;
        Ok(Door { runtime: door, _open: open })
    }

    /// Runs `task` there. It is aborted when what is returned is dropped.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.runtime.spawn(task))
    }
}

/// Drives `work` on this thread, but as if it ran in `runtime`: what it begins and leaves to itself stays there.
pub(crate) async fn within<T>(runtime: &Handle, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _entered = runtime.enter();
        work.as_mut().poll(cx)
    })
    .await
}
