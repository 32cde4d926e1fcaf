//! What opening an object brought along, for a moment: the reads that find out what it is need not ask again.

use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For how long it is kept: longer than finding out what an object is takes, and not so long that what a thousand of them
/// brought and nobody reads would add up.
const KEPT: Duration = Duration::from_secs(2);

/// The first bytes of an object and its last.
#[derive(Debug)]
pub(super) struct AtHand(Arc<Mutex<Ends>>);

#[derive(Debug, Default)]
struct Ends {
    first: Bytes,
    /// Empty, or up to where the object ends.
    last: Bytes,
    last_at: u64,
}

impl AtHand {
    /// Of an object of `size` bytes. Must run in a tokio runtime.
    pub(super) fn new(first: Bytes, last: Bytes, size: u64) -> AtHand {
        let last_at = size.saturating_sub(last.len() as u64);
        let ends = Arc::new(Mutex::new(Ends { first, last, last_at }));
        let kept = Arc::downgrade(&ends);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(ends) = kept.upgrade() {
                *locked(&ends) = Ends::default();
            }
        });
        AtHand(ends)
    }

    /// How many of the first bytes there are.
    pub(super) fn first(&self) -> u64 {
        locked(&self.0).first.len() as u64
    }

    /// Lets go of all but the first `len` bytes.
    pub(super) fn keep_first(&self, len: u64) {
        let mut ends = locked(&self.0);
        let first = match ends.first.get(..usize::try_from(len).unwrap_or(usize::MAX)) {
            // A slice of it would hold on to all of it.
            Some(fewer) => Bytes::copy_from_slice(fewer),
            None => std::mem::take(&mut ends.first),
        };
        *ends = Ends { first, ..Ends::default() };
    }

    /// The bytes of `range`, if all of them are here.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        let ends = locked(&self.0);
        cut(&ends.first, range.start, range.end).or_else(|| {
            let begin = range.start.checked_sub(ends.last_at)?;
            cut(&ends.last, begin, range.end.checked_sub(ends.last_at)?)
        })
    }
}

/// The bytes from `begin` to `end`, if there are that many.
fn cut(bytes: &Bytes, begin: u64, end: u64) -> Option<Bytes> {
    (begin <= end && end <= bytes.len() as u64).then(|| bytes.slice(begin as usize..end as usize))
}

fn locked(ends: &Mutex<Ends>) -> MutexGuard<'_, Ends> {
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}
