//! Where clients come in: a thread of its own, which has less claim to the processor than those that serve.
//!
//! Anybody who reaches the socket can make a server accept, negotiate and refuse requests, as often as they like. On a
//! thread of its own that takes from the clients that are served no more than the kernel gives to that thread of a busy
//! processor, and that is a third of what a serving thread gets. A client stays here until it has asked for some bytes that
//! are there.

use crate::thread::Thread;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// How much nicer the thread is than one that serves, which has three times its weight then (sched(7)).
const NICER: i32 = 5;

/// The thread. It ends, and with it all tasks on it, when this is dropped.
#[derive(Debug)]
pub(crate) struct Door(Thread);

impl Door {
    /// Starts the thread.
    pub(crate) fn open() -> io::Result<Door> {
        Thread::start("door", NICER).map(Door)
    }

    /// Runs `task` there. It is aborted when what is returned is dropped.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.0.runtime().spawn(task))
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
