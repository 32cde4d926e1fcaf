//! How many requests one source has under way: as many as the server takes. A large request counts for several, so that
//! no more bytes are under way than a slow link brings in good time.
//!
//! A server that says that it is too busy halves the number, and answers raise it again, one step for each round.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The most, and the fewest.
const MOST: u32 = 128;
const FEWEST: u32 = WIDEST;

/// How many bytes of a request count for one lane, and how many lanes it takes at most.
const UNIT: u64 = 256 << 10;
const WIDEST: u32 = 8;

/// Complaints within this time are about the same crowd.
const ONE_CROWD: Duration = Duration::from_secs(1);

/// How many lanes a request of `len` bytes takes: never more than there always are, or it would wait for ever.
fn width(len: u64) -> u32 {
    u32::try_from(len.div_ceil(UNIT)).unwrap_or(WIDEST).clamp(1, WIDEST)
}

#[derive(Debug)]
pub(super) struct Lanes {
    open: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: u32,
    /// Lanes in use that are to be closed when they are left.
    closing: u32,
    /// Answers since the limit changed.
    answers: u32,
    complained: Option<Instant>,
}

/// One request's lanes. Given back when dropped.
#[derive(Debug)]
pub(super) struct Lane<'a> {
    lanes: &'a Lanes,
    permit: Option<SemaphorePermit<'a>>,
}

impl Lanes {
    pub(super) fn new() -> Lanes {
        let state = State { limit: MOST, closing: 0, answers: 0, complained: None };
        Lanes { open: Semaphore::new(MOST as usize), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The numbers are consistent after each statement that changes them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lanes for a request of `len` bytes. They are never closed for good, so there are some at last.
    pub(super) async fn enter(&self, len: u64) -> Lane<'_> {
        Lane { lanes: self, permit: self.open.acquire_many(width(len)).await.ok() }
    }

    /// Lanes for a request of `len` bytes, if they are free.
    pub(super) fn try_enter(&self, len: u64) -> Option<Lane<'_>> {
        let permit = self.open.try_acquire_many(width(len)).ok()?;
        Some(Lane { lanes: self, permit: Some(permit) })
    }

    /// The server answered.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.answers += 1;
        if state.answers < state.limit || state.limit == MOST {
            return;
        }
        state.answers = 0;
        state.limit += 1;
        match state.closing {
            0 => self.open.add_permits(1),
            _ => state.closing -= 1,
        }
    }

    /// The server said that it is too busy.
    pub(super) fn crowded(&self) {
        let mut state = self.state();
        state.answers = 0;
        if state.complained.is_some_and(|at| at.elapsed() < ONE_CROWD) {
            return;
        }
        state.complained = Some(Instant::now());
        let limit = (state.limit / 2).max(FEWEST);
        let closed = state.limit - limit;
        state.limit = limit;
        let now = self.open.forget_permits(closed as usize);
        state.closing += closed - u32::try_from(now).unwrap_or(closed).min(closed);
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut state = self.lanes.state();
        if let Some(permit) = &mut self.permit {
            let close = state.closing.min(u32::try_from(permit.num_permits()).unwrap_or(0));
            if let Some(closed) = permit.split(close as usize) {
                closed.forget();
                state.closing -= close;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many lanes can be entered now.
    fn free(lanes: &Lanes) -> usize {
        std::iter::from_fn(|| lanes.try_enter(1)).collect::<Vec<_>>().len()
    }

    #[tokio::test(start_paused = true)]
    async fn complaints_halve_the_lanes_and_answers_open_them_again() {
        let lanes = Lanes::new();
        assert_eq!(free(&lanes), 128);
        lanes.crowded();
        lanes.crowded();
        assert_eq!(free(&lanes), 64, "one crowd, one halving");
        for expect in [32, 16, 8, 8] {
            tokio::time::advance(ONE_CROWD).await;
            lanes.crowded();
            assert_eq!(free(&lanes), expect);
        }
        (0..8).for_each(|_| lanes.answered());
        assert_eq!(free(&lanes), 9);
        (0..20_000).for_each(|_| lanes.answered());
        assert_eq!(free(&lanes), 128, "and no more than that");
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_in_use_close_when_they_are_left() {
        let lanes = Lanes::new();
        let used: Vec<_> = std::iter::from_fn(|| lanes.try_enter(2 * UNIT)).collect();
        assert_eq!(used.len(), 64);
        lanes.crowded();
        assert_eq!(free(&lanes), 0);
        drop(used);
        assert_eq!(free(&lanes), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_request_gets_through_whatever_happens_while_it_waits() {
        let lanes = Lanes::new();
        let used: Vec<_> = std::iter::from_fn(|| lanes.try_enter(1)).collect();
        let mut large = std::pin::pin!(lanes.enter(u64::MAX));
        assert!(futures_util::poll!(&mut large).is_pending());
        for _ in 0..10 {
            tokio::time::advance(ONE_CROWD).await;
            lanes.crowded();
        }
        drop(used);
        large.await;
    }
}
