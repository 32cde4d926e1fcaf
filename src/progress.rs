//! How much of a served disk is local, and how fast that grows.

use crate::image::{Coverage, Image};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long what was found out is good enough.
const FRESH: Duration = Duration::from_secs(1);

/// How far back the beginning of what a rate is about may lie.
const RATE_OVER: Duration = Duration::from_secs(15);

/// How long finding out may take; a server may have to be asked for tables.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is said of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of the disk that are not known to be zero.
    pub data: u64,
    /// How many of them can be read without asking a server.
    pub local: u64,
    /// Bytes that become local per second, at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Seconds until all is local at this rate; absent where it stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// Finds that out, not too often.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Mutex<Option<(Instant, Progress)>>,
}

impl Meter {
    /// How much of `image` is local. None if that cannot be said now.
    pub(crate) async fn look(&self, image: &Image) -> Option<Progress> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, progress)) = last
            && at.elapsed() < FRESH
        {
            return Some(progress);
        }
        let now = Instant::now();
        let coverage = tokio::time::timeout(PATIENCE, image.coverage()).await.ok()?.ok()?;
        let before = last.map(|(at, progress)| (now - at, progress.local));
        let progress = Progress::of(coverage, before.filter(|(time, _)| *time < RATE_OVER), image.rate());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, progress));
        Some(progress)
    }
}

impl Progress {
    /// Of `coverage`, when so long before so many bytes were local, if somebody looked then, and `coming` bytes per second
    /// come at present.
    ///
    /// Two looks know best: not all that comes is kept, some of it may be of no disk, and another may bring the same object.
    fn of(coverage: Coverage, before: Option<(Duration, u64)>, coming: u64) -> Progress {
        let Coverage { data, local } = coverage;
        let grown = before.map(|(time, earlier)| {
            let per_second = u128::from(local.saturating_sub(earlier)) * 1000 / time.as_millis().max(1);
            u64::try_from(per_second).unwrap_or(u64::MAX)
        });
        let rate = Some(grown.unwrap_or(coming));
        let seconds_left = rate.and_then(|rate| (data - local).checked_div(rate));
        Progress { data, local, rate, seconds_left }
    }

    /// In words for a table: `37 %`, and how fast that grows if it does.
    pub(crate) fn words(&self) -> String {
        let percent = (u128::from(self.local) * 100).checked_div(self.data.into()).unwrap_or(100);
        match (self.rate, self.seconds_left) {
            (Some(rate @ 1..), Some(left)) if self.local < self.data => {
                format!("{percent} % ({}/s, {left} s left)", crate::size::Size(rate))
            }
            _ => format!("{percent} %"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_and_what_is_left_follow_from_two_looks() {
        let coverage = Coverage { data: 1000, local: 400 };
        let progress = Progress::of(coverage, Some((Duration::from_millis(500), 300)), 7);
        assert_eq!(progress, Progress { data: 1000, local: 400, rate: Some(200), seconds_left: Some(3) });
        assert_eq!(Progress::of(coverage, None, 0).words(), "40 %");
        // Who looks once has what is coming.
        let once = Progress::of(coverage, None, 300);
        assert_eq!((once.rate, once.seconds_left), (Some(300), Some(2)));
        // Evicted meanwhile: it stands still.
        let evicted = Progress::of(coverage, Some((Duration::from_secs(1), 500)), 0);
        assert_eq!((evicted.rate, evicted.seconds_left), (Some(0), None));
        assert_eq!(Progress::of(Coverage::default(), None, 0).words(), "100 %");
        assert!(progress.words().starts_with("40 % (200"), "{}", progress.words());
    }
}
