//! Threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on one of them for as long as it lives. In a runtime of many threads it goes to whichever has nothing to
//! do, where nothing of it is in the processor's caches, and each of its wake-ups may wake another thread as well:
//! `docs/performance.md` has what that costs.

use rustix::process::nice;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A thread that drives the tasks of its own runtime. It ends, and with it all of them, when this is dropped.
#[derive(Debug)]
pub(crate) struct Thread {
    runtime: Handle,
    _open: DropGuard,
}

impl Thread {
    /// Starts it, with `nicer` less claim to the processor than this thread has (sched(7)).
    pub(crate) fn start(name: &str, nicer: i32) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let closed = CancellationToken::new();
        let open = closed.clone().drop_guard();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Of this thread alone, as Linux has it (setpriority(2), "C library/kernel differences").
            if nicer > 0
                && let Err(error) = nice(nicer)
            {
                tracing::debug!(%error, "a thread has the same claim to the processor as all others");
            }
            runtime.block_on(closed.cancelled());
        })?;
        Ok(Self { runtime: handle, _open: open })
    }

    /// Its runtime.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// A thread that serves, and how many connections it does.
#[derive(Debug)]
struct Serving {
    thread: Thread,
    connections: Arc<AtomicUsize>,
}

/// The threads that serve: as many as there are connections, and no more than processors. They end when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Vec<Serving>>);

/// A connection's place on a thread, until dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Threads {
    /// A place on the thread that has the fewest connections. Fails where the first thread cannot be started.
    pub(crate) fn seat(&self) -> io::Result<Seat> {
        // It is grown in one step.
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |serving: &&Serving| serving.connections.load(Ordering::Relaxed);
        let idle = threads.iter().any(|serving| load(&serving) == 0);
        if !idle && threads.len() < std::thread::available_parallelism().map_or(1, usize::from) {
            match Thread::start("serve", 0) {
                Ok(thread) => threads.push(Serving { thread, connections: Arc::default() }),
                Err(error) if threads.is_empty() => return Err(error),
                Err(error) => tracing::debug!(%error, "no more threads serve than {}", threads.len()),
            }
        }
        let least = threads.iter().min_by_key(load).ok_or(io::ErrorKind::NotFound)?;
        least.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { runtime: least.thread.runtime().clone(), connections: least.connections.clone() })
    }
}

impl Seat {
    /// The thread's runtime.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::available_parallelism;

    #[test]
    fn connections_are_spread_over_threads_of_which_there_are_no_more_than_processors() {
        let threads = Threads::default();
        let processors = available_parallelism().unwrap().get();
        let seats: Vec<_> = (0..3 * processors).map(|_| threads.seat().unwrap()).collect();
        let loads = || -> Vec<_> {
            threads
                .0
                .lock()
                .unwrap()
                .iter()
                .map(|serving| serving.connections.load(Ordering::Relaxed))
                .collect()
        };
        assert_eq!(loads(), vec![3; processors]);
        drop(seats);
        assert_eq!(loads(), vec![0; processors], "all have left");
        let one = threads.seat().unwrap();
        assert_eq!(loads().iter().sum::<usize>(), 1);
        assert_eq!(loads().len(), processors, "an idle thread is used again");
        let (sender, receiver) = std::sync::mpsc::channel();
        one.runtime().spawn(async move { sender.send(std::thread::current().id()).unwrap() });
        assert_ne!(receiver.recv().unwrap(), std::thread::current().id());
    }
}
