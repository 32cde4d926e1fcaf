//! When to try again: a pure policy, without clock, sleep or randomness of its own.

use std::time::Duration;

/// How a try failed, as far as trying again is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server or the way to it: refused, reset, timed out, short body, 5xx. May pass.
    Transient,
    /// As `Transient`, and nobody answered at all.
    Unreached,
    /// As `Transient`: the server has too much to do, and said how long to wait, or 0.
    Busy(Duration),
    /// The answer did not fit the request. Worth a few tries: a proxy may have answered, or one server of several.
    Wrong,
    /// Trying again cannot help.
    Final,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait this long, then try again.
    Wait(Duration),
    /// Report the failure.
    GiveUp,
}

/// How long and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// From the first try to the last answer. It must be below the kernel's timeout for a request, which is 30 s
    /// unless it was set.
    pub deadline: Duration,
    /// The wait after the first failure; it doubles with every further one.
    pub first: Duration,
    /// The longest wait. Short, so that a server that is back is noticed soon.
    pub longest: Duration,
    /// How many tries may end in [`Failure::Wrong`].
    pub wrong: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            deadline: Duration::from_secs(20),
            first: Duration::from_millis(50),
            longest: Duration::from_secs(1),
            wrong: 3,
        }
    }
}

/// How long opening an object is tried: somebody waits for it, and may have mistyped the server's name.
const OPENING: Duration = Duration::from_secs(6);

impl Policy {
    /// The policy for opening what is read with this one.
    pub fn opening(&self) -> Policy {
        Policy { deadline: self.deadline.min(OPENING), ..*self }
    }

    /// What to do after try number `attempt` (from 1) failed, `elapsed` after the first try began. `jitter`, in
    /// `0.0..1.0`, spreads the waits of many readers over the upper half of the interval.
    pub fn after(&self, attempt: u32, failure: Failure, elapsed: Duration, jitter: f64) -> Decision {
        let doubled =
            self.first.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1).min(20)).unwrap_or(1));
        let wait = doubled.min(self.longest).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        let wait = match failure {
            Failure::Final => return Decision::GiveUp,
            Failure::Wrong if attempt >= self.wrong => return Decision::GiveUp,
            Failure::Busy(asked) => wait.max(asked),
            Failure::Transient | Failure::Unreached | Failure::Wrong => wait,
        };
        if elapsed.saturating_add(wait) >= self.deadline { Decision::GiveUp } else { Decision::Wait(wait) }
    }
}

/// A number in `0.0..1.0` for [`Policy::after`], good enough to keep readers apart.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn wait(decision: Decision) -> Duration {
        match decision {
            Decision::Wait(wait) => wait,
            Decision::GiveUp => panic!("gave up"),
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = Policy::default();
        for (attempt, full) in
            [(1, 50), (2, 100), (3, 200), (5, 800), (6, 1000), (60, 1000), (u32::MAX, 1000)]
        {
            let at = |jitter| wait(policy.after(attempt, Failure::Transient, MS(0), jitter));
            assert_eq!(at(1.0), MS(full), "try {attempt}");
            assert_eq!(at(0.0), MS(full) / 2, "try {attempt}");
        }
    }

    #[test]
    fn the_deadline_holds_whatever_the_server_asks_for() {
        let policy = Policy::default();
        assert_eq!(policy.after(1, Failure::Transient, MS(19_990), 1.0), Decision::GiveUp);
        assert_eq!(policy.after(1, Failure::Busy(MS(30_000)), MS(0), 1.0), Decision::GiveUp);
        assert_eq!(policy.after(1, Failure::Busy(MS(3000)), MS(0), 1.0), Decision::Wait(MS(3000)));
        // A policy followed to its end takes less than its deadline.
        let (mut elapsed, mut attempt) = (MS(0), 1);
        while let Decision::Wait(wait) = policy.after(attempt, Failure::Transient, elapsed, 0.0) {
            elapsed += wait;
            attempt += 1;
        }
        assert!(elapsed < policy.deadline && elapsed > policy.deadline - policy.longest);
    }

    #[test]
    fn opening_takes_less_time_than_reading() {
        let policy = Policy::default();
        assert!(policy.opening().deadline < policy.deadline);
        let hurried = Policy { deadline: MS(10), ..policy };
        assert_eq!(hurried.opening().deadline, MS(10));
    }

    #[test]
    fn wrong_answers_are_tried_a_few_times_and_final_ones_never() {
        let policy = Policy::default();
        assert!(matches!(policy.after(2, Failure::Wrong, MS(0), 0.5), Decision::Wait(_)));
        assert_eq!(policy.after(3, Failure::Wrong, MS(0), 0.5), Decision::GiveUp);
        assert_eq!(policy.after(1, Failure::Final, MS(0), 0.5), Decision::GiveUp);
    }

    #[test]
    fn jitter_is_in_its_interval_and_varies() {
        let samples: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(samples.iter().all(|j| (0.0..1.0).contains(j)));
        assert!(samples.iter().any(|j| *j < 0.5) && samples.iter().any(|j| *j >= 0.5));
    }
}
