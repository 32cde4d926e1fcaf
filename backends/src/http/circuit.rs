//! Whether a server can be reached at all.
//!
//! When several requests in a row found nobody, the circuit opens: readers wait, and one of them at a time asks, ever
//! less often, until the server answers. So a server that comes back is not met by all who wait at once, and all who
//! wait go on at once.

use crate::Kind;
use crate::retry::Failure;
use crate::tries::Fault;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How many requests in a row must have found nobody.
const FAILURES: u32 = 8;

/// The waits between probes: the first, and the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// How long after a probe is due the server is asked again though another one answers in its place.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// The circuits of all servers. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circuits(Arc<Mutex<HashMap<String, Weak<Circuit>>>>);

impl Circuits {
    /// The circuit of `server`.
    pub(super) fn of(&self, server: &str) -> Arc<Circuit> {
        let mut circuits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        circuits.retain(|_, circuit| circuit.strong_count() > 0);
        if let Some(circuit) = circuits.get(server).and_then(Weak::upgrade) {
            return circuit;
        }
        let circuit = Arc::new(Circuit::new(server.to_owned()));
        circuits.insert(server.to_owned(), Arc::downgrade(&circuit));
        circuit
    }
}

/// The circuit of one server.
#[derive(Debug)]
pub(super) struct Circuit {
    server: String,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Requests that found nobody since the last that did not.
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    /// What the last request found.
    cause: String,
    probing: bool,
    /// When the next probe may begin, and how long the wait for it was.
    next: Instant,
    wait: Duration,
}

impl Circuit {
    fn new(server: String) -> Circuit {
        Circuit { server, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under this lock is a single step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server is worth asking when there is another: it answers, or nobody has asked it for long.
    pub(super) fn is_clear(&self) -> bool {
        let state = self.state();
        state.open.as_ref().is_none_or(|open| !open.probing && Instant::now() >= open.next + FORGOTTEN)
    }

    /// Waits until the server may be asked: at once, unless the circuit is open.
    pub(super) async fn enter(&self, deadline: Instant) -> Result<Pass<'_>, Fault> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let next = {
                let mut state = self.state();
                let Some(open) = &mut state.open else { return Ok(Pass { circuit: self, probe: false }) };
                if !open.probing && Instant::now() >= open.next {
                    open.probing = true;
                    return Ok(Pass { circuit: self, probe: true });
                }
                if open.probing { deadline } else { open.next.min(deadline) }
            };
            tokio::select! {
                () = &mut changed => {}
                () = sleep_until(next) => {}
            }
            if Instant::now() >= deadline {
                let state = self.state();
                let cause = state.open.as_ref().map(|open| open.cause.clone());
                let cause = cause.unwrap_or_else(|| "the server cannot be reached".to_owned());
                return Err(Fault::new(Kind::Unreachable, Failure::Final, cause));
            }
        }
    }
}

/// Leave to ask the server once. Dropped without a word, it says nothing about the server.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    circuit: &'a Circuit,
    probe: bool,
}

impl Pass<'_> {
    /// Says what came of it.
    pub(super) fn report(self, outcome: Result<(), &Fault>) {
        match outcome {
            Err(fault) if fault.failure == Failure::Unreached => self.unreached(&fault.what),
            _ => self.reached(),
        }
    }

    fn reached(self) {
        let mut state = self.circuit.state();
        state.failures = 0;
        if let Some(open) = state.open.take() {
            let seconds = open.since.elapsed().as_secs();
            tracing::info!("{}: the server answers again, after {seconds} s", self.circuit.server);
            self.circuit.changed.notify_waiters();
        }
    }

    fn unreached(self, cause: &str) {
        let mut state = self.circuit.state();
        state.failures += 1;
        let now = Instant::now();
        let failures = state.failures;
        match &mut state.open {
            Some(open) => {
                cause.clone_into(&mut open.cause);
                if self.probe {
                    open.wait = (open.wait * 2).min(LONGEST);
                    open.next = now + open.wait;
                }
            }
            slot if failures >= FAILURES => {
                tracing::warn!("{}: {cause}; readers wait for it", self.circuit.server);
                let (since, cause, probing) = (now, cause.to_owned(), false);
                *slot = Some(Open { since, cause, probing, next: now + FIRST, wait: FIRST });
            }
            _ => {}
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.probe {
            return;
        }
        if let Some(open) = &mut self.circuit.state().open {
            open.probing = false;
        }
        // Somebody else's turn.
        self.circuit.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout_at;

    fn nobody() -> Fault {
        Fault::new(Kind::Unreachable, Failure::Unreached, "nobody is there")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn opened() -> Arc<Circuit> {
        let circuit = Circuits::default().of("server");
        for _ in 0..FAILURES {
            circuit.enter(soon()).await.unwrap().report(Err(&nobody()));
        }
        circuit
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_only() {
        let circuit = Circuits::default().of("server");
        for _ in 0..100 {
            for _ in 1..FAILURES {
                circuit.enter(soon()).await.unwrap().report(Err(&nobody()));
            }
            // An answer of any kind shows that somebody is there.
            let refused = Fault::new(Kind::Denied, Failure::Final, "no");
            circuit.enter(soon()).await.unwrap().report(Err(&refused));
        }
        assert!(circuit.state().open.is_none());
        assert!(opened().await.state().open.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_while_the_others_wait_and_all_go_on_at_once() {
        let circuit = opened().await;
        let began = Instant::now();
        let mut asked = 0;
        // Five seconds of nobody.
        while began.elapsed() < Duration::from_secs(5) {
            let probe = circuit.enter(soon()).await.unwrap();
            assert!(probe.probe);
            let second = timeout_at(Instant::now() + Duration::from_millis(1), circuit.enter(soon()));
            assert!(second.await.is_err(), "one at a time");
            probe.report(Err(&nobody()));
            asked += 1;
        }
        assert!((5..=9).contains(&asked), "{asked} probes in 5 s");
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let circuit = circuit.clone();
                tokio::spawn(async move { circuit.enter(soon()).await.map(|pass| pass.report(Ok(()))) })
            })
            .collect();
        for waiter in waiting {
            waiter.await.unwrap().unwrap();
        }
        assert!(circuit.state().open.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_past_the_deadline_is_told_why() {
        let circuit = opened().await;
        let _probe = circuit.enter(soon()).await.unwrap();
        let fault = circuit.enter(Instant::now() + Duration::from_secs(1)).await.unwrap_err();
        assert_eq!((fault.kind, fault.what.as_str()), (Kind::Unreachable, "nobody is there"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_leaves_its_turn_to_the_next() {
        let circuit = opened().await;
        drop(circuit.enter(soon()).await.unwrap());
        assert!(circuit.enter(soon()).await.unwrap().probe);
    }
}
