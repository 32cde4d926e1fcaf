//! The tries of one read from a server, and what each may report.

use crate::retry::{self, Decision, Failure, Policy};
use crate::{Error, Kind};
use tokio::time::Instant;

/// Why one try gave no bytes, or not all of them.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) failure: Failure,
    /// For people, to follow the location and a colon.
    pub(crate) what: String,
}

impl Fault {
    pub(crate) fn new(kind: Kind, failure: Failure, what: impl Into<String>) -> Fault {
        Fault { kind, failure, what: what.into() }
    }
}

/// The tries of one read.
pub(crate) struct Tries {
    policy: Policy,
    started: Instant,
    attempt: u32,
    /// Why the last one that ended failed.
    last: Option<Fault>,
}

impl Tries {
    pub(crate) fn new(policy: Policy) -> Tries {
        Tries { policy, started: Instant::now(), attempt: 0, last: None }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.policy.deadline
    }

    /// Why a try that the deadline ended failed: as the one before it, for that says more.
    pub(crate) fn out_of_time(&self) -> Fault {
        match self.last.clone() {
            Some(last) => Fault { failure: Failure::Final, ..last },
            None => out_of_time(),
        }
    }

    /// A try brought something: the next wait is short again.
    pub(crate) fn progressed(&mut self) {
        self.attempt = 0;
    }

    /// Waits until the next try is due, or returns the fault if there should be none.
    pub(crate) async fn failed(&mut self, fault: Fault) -> Result<(), Fault> {
        self.attempt += 1;
        self.last = Some(fault.clone());
        match self.policy.after(self.attempt, fault.failure, self.started.elapsed(), retry::jitter()) {
            Decision::GiveUp => Err(fault),
            Decision::Wait(wait) => {
                tracing::debug!(
                    attempt = self.attempt,
                    ?wait,
                    fault = fault.what,
                    "a request is tried again"
                );
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
    }
}

fn out_of_time() -> Fault {
    Fault::new(Kind::Unreachable, Failure::Final, "the server did not send what was asked for in time")
}

pub(crate) fn error(location: impl std::fmt::Display, fault: &Fault) -> Error {
    Error::new(fault.kind, format!("{location}: {}", fault.what))
}
