//! How fast the cache gets what it did not have.
//!
//! What is local of a disk takes a walk through all its tables to say, so a rate is not found by saying it again and again:
//! what fills blocks of the cache counts their bytes.

use backends::cache::Pieces;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// For so many seconds it is remembered how much came in each.
const SECONDS: usize = 15;

/// Bytes that came for one object of the cache, of late.
#[derive(Debug)]
pub(super) struct Flow {
    began: Instant,
    /// Seconds since it began, and the bytes of that second.
    came: Mutex<[(u64, u64); SECONDS]>,
}

impl Default for Flow {
    fn default() -> Self {
        Flow { began: Instant::now(), came: Mutex::default() }
    }
}

impl Flow {
    /// Counts the bytes of `pieces`, which came now.
    pub(super) fn count(&self, pieces: &Pieces) {
        let bytes = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.add(self.began.elapsed().as_secs(), bytes);
    }

    fn add(&self, second: u64, bytes: u64) {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut came[second as usize % SECONDS];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 = slot.1.saturating_add(bytes);
    }

    /// Bytes per second, since something came for the first time in the last 15 seconds.
    pub(super) fn rate(&self) -> u64 {
        self.rate_at(self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX))
    }

    fn rate_at(&self, now: u64) -> u64 {
        let came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = (now / 1000).saturating_sub(SECONDS as u64 - 1);
        let late = || came.iter().filter(|(second, bytes)| *second >= oldest && *bytes > 0);
        let Some(first) = late().map(|(second, _)| *second).min() else { return 0 };
        // What has only just begun is no rate of a millisecond's.
        let time = now.saturating_sub(first * 1000).max(1000);
        let bytes: u128 = late().map(|(_, bytes)| u128::from(*bytes)).sum();
        u64::try_from(bytes * 1000 / u128::from(time)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let flow = Flow::default();
        assert_eq!(flow.rate_at(5000), 0);
        flow.add(2, 3000);
        assert_eq!((flow.rate_at(2001), flow.rate_at(5000)), (3000, 1000));
        for second in 3..40 {
            flow.add(second, 200);
            flow.add(second, 300);
        }
        assert_eq!(flow.rate_at(40_000), 500 * 14 / 14);
        assert_eq!(flow.rate_at(50_000), 500 * 4 / 14);
        // It has stood still for a while.
        assert_eq!(flow.rate_at(55_000), 0);
    }
}
