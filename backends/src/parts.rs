//! What reading from servers with one connection for each file has in common (NFS and SMB): large reads are many small
//! ones, all under way at once, within bounds.

use crate::retry::{Failure, Policy};
use crate::tries::{Fault, Tries, error};
use crate::{Error, Identity, Kind};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::ops::Range;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{timeout, timeout_at};

/// How many READs one source has under way, those of more than [`UNIT`] bytes counting for several: enough for a link of
/// 20 ms, and no more bytes than a slow one brings in good time.
const IN_FLIGHT: usize = 128;
const UNIT: u64 = 256 << 10;

/// How many READs one read of a source has under way.
const CONCURRENT: usize = 16;

/// How long a connection may bring less than [`LEAST`] bytes while an answer is owed. Twice this fits in the deadline of a
/// read, so that another connection is tried in time.
pub(crate) const SILENCE: Duration = Duration::from_secs(8);

/// What a server that is worth waiting for sends in [`SILENCE`]: less than the slowest line, more than a server that
/// keeps a connection alive with a byte now and then.
const LEAST: u64 = 16 << 10;

/// The READs of one source that are under way.
#[derive(Debug)]
pub(crate) struct InFlight(Semaphore);

impl InFlight {
    pub(crate) fn new() -> InFlight {
        InFlight(Semaphore::new(IN_FLIGHT))
    }

    /// Waits until a READ of `len` bytes may be sent. It is under way as long as the permit is held.
    pub(crate) async fn enter(&self, len: u64) -> Option<SemaphorePermit<'_>> {
        let units = len.div_ceil(UNIT).clamp(1, IN_FLIGHT as u64) as u32;
        // The semaphore is never closed.
        self.0.acquire_many(units).await.ok()
    }
}

/// The bytes of `range`, by as many calls of `read` as there are steps of `step` bytes in it.
pub(crate) async fn in_parts<F: Future<Output = Result<Bytes, Fault>>>(
    range: &Range<u64>,
    step: u32,
    read: impl Fn(Range<u64>) -> F,
) -> Result<Bytes, Fault> {
    let starts = (range.start..range.end).step_by(step as usize);
    let reads = starts.map(|start| read(start..range.end.min(start + u64::from(step))));
    let parts: Vec<Bytes> = stream::iter(reads).buffered(CONCURRENT).try_collect().await?;
    if let [part] = parts.as_slice() {
        return Ok(part.clone());
    }
    let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes.freeze())
}

/// What `answers` brings, unless the connection that they come by is as good as [`silent`]; `received` says how many bytes
/// it has brought so far.
pub(crate) async fn steadily<T>(answers: impl Future<Output = T>, received: impl Fn() -> u64) -> Option<T> {
    let mut answers = pin!(answers);
    loop {
        let before = received();
        match timeout(SILENCE, &mut answers).await {
            Ok(outcome) => return Some(outcome),
            Err(_) if received().saturating_sub(before) >= LEAST => {}
            Err(_) => return None,
        }
    }
}

/// Nothing came, or next to nothing. Another connection may fare better.
pub(crate) fn silent() -> Fault {
    Fault::new(Kind::Unreachable, Failure::Transient, "the server stopped answering")
}

/// All bytes of `range`, by as many calls of `read` as it takes: each brings at least one byte from where it is to begin.
pub(crate) async fn whole<F: Future<Output = Result<Bytes, Fault>>>(
    range: Range<u64>,
    read: impl Fn(Range<u64>) -> F,
) -> Result<Bytes, Fault> {
    let first = read(range.clone()).await?;
    if first.len() as u64 == range.end - range.start {
        return Ok(first);
    }
    let mut bytes = BytesMut::from(first.as_ref());
    while (bytes.len() as u64) < range.end - range.start {
        bytes.extend_from_slice(&read(range.start + bytes.len() as u64..range.end).await?);
    }
    Ok(bytes.freeze())
}

/// `range` of the object, as `attempt` brings it, tried as `policy` says. That the object changed is noted in `changed`,
/// for good; nothing is attempted then, nor for a range that is empty or not in the object.
pub(crate) async fn tried<F: Future<Output = Result<Bytes, Fault>>>(
    policy: Policy,
    identity: &Identity,
    changed: &OnceLock<Error>,
    range: &Range<u64>,
    attempt: impl Fn() -> F,
) -> Result<Bytes, Error> {
    let len = crate::source::checked_len(identity, range)?;
    if let Some(error) = changed.get() {
        return Err(error.clone());
    }
    if len == 0 {
        return Ok(Bytes::new());
    }
    let mut tries = Tries::new(policy);
    loop {
        let fault = match timeout_at(tries.deadline(), attempt()).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(fault)) => fault,
            Err(_) => tries.out_of_time(),
        };
        if fault.kind == Kind::Changed {
            return Err(changed.get_or_init(|| error(&identity.location, &fault)).clone());
        }
        tries.failed(fault).await.map_err(|fault| error(&identity.location, &fault))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_drips_is_given_up_and_one_that_is_slow_is_not() {
        let (began, received) = (Instant::now(), AtomicU64::new(0));
        for (bytes, outcome) in [(1, None), (3000, Some(()))] {
            let answers = async {
                for _ in 0..60 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    received.fetch_add(bytes, Ordering::Relaxed);
                }
            };
            let seen = steadily(answers, || received.load(Ordering::Relaxed)).await;
            assert_eq!(seen, outcome, "{bytes} bytes a second");
        }
        assert!(began.elapsed() < 2 * SILENCE + Duration::from_secs(60));
    }
}
