//! When a request is late, and whether a second one may be sent beside it.
//!
//! One of many servers behind an address, or one connection of many, may be far slower than the others. A request that
//! takes much longer than nearly all others did gets a second one, and the first of both to be done is taken. So that a
//! link which is slow for all is not loaded twice, that is done for one request in twenty at most.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A request is late at this many times what nearly all take.
const LATE: u32 = 3;

/// But not before this, and in any case then.
const SOONEST: Duration = Duration::from_millis(500);
const LATEST: Duration = Duration::from_secs(4);

/// How many further requests each one pays for, and how many can be saved up.
const SHARE: f64 = 0.05;
const SAVED: f64 = 4.0;

/// What nearly all take, before any is known.
const UNKNOWN: Duration = Duration::from_millis(500);

/// How far a time above, or below, moves the estimate: at rest 95 of 100 are below it.
const UP: f64 = 0.19;
const DOWN: f64 = 0.01;

#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    /// What 95 of 100 requests stay below.
    usual: Duration,
    /// How many second requests may be sent.
    saved: f64,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace(Mutex::new(State { usual: UNKNOWN, saved: 1.0 }))
    }

    /// After how long a request is late.
    pub(super) fn late(&self) -> Duration {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.usual * LATE).clamp(SOONEST, LATEST)
    }

    /// A request took this long.
    pub(super) fn took(&self, time: Duration) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let step = if time > state.usual { 1.0 + UP } else { 1.0 - DOWN };
        state.usual = state.usual.mul_f64(step).clamp(Duration::from_millis(1), LATEST);
        state.saved = (state.saved + SHARE).min(SAVED);
    }

    /// Takes leave for a second request, if there is some.
    pub(super) fn may_repeat(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.saved < 1.0 {
            return false;
        }
        state.saved -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_what_nearly_all_take() {
        let pace = Pace::new();
        // 1 ms to 1 s, in an order that mixes them.
        (0..20_000u64).for_each(|i| pace.took(Duration::from_millis(i * 7919 % 1000 + 1)));
        let usual = pace.late() / LATE;
        assert!((Duration::from_millis(850)..Duration::from_millis(1100)).contains(&usual), "{usual:?}");
    }

    #[test]
    fn late_is_bounded_and_second_requests_are_few() {
        let pace = Pace::new();
        (0..10_000).for_each(|_| pace.took(Duration::from_micros(10)));
        assert_eq!(pace.late(), SOONEST);
        assert_eq!((0..100).filter(|_| pace.may_repeat()).count(), 4);
        let sent: usize = (0..1000)
            .map(|_| {
                pace.took(Duration::from_secs(60));
                usize::from(pace.may_repeat())
            })
            .sum();
        assert!(sent <= 50, "{sent} of 1000");
        assert_eq!(pace.late(), LATEST);
    }
}
