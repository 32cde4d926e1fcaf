//! An image as an NBD export: the one place where errors become protocol error numbers.

use crate::error::{Error, Kind, Result};
use crate::image::{Image, Piece, Pieces};
use crate::prefetch::{Background, Wishes};
use crate::progress::Meter;
pub use crate::progress::Progress;
use crate::trace::Recorder;
use backends::cache::{Lease, Span};
use bytes::Bytes;
use nbd::{Errno, Export, ExportInfo, Extent, ExtentFlags, Failure, FileBytes, Segment, Segments};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Longest a read may take before it is answered with an error, below the kernel client's timer: an answer that
/// comes later than that costs the kernel its socket.
pub const READ_DEADLINE: Duration = Duration::from_secs(25);

/// A read that waits for so long is one whose server does not answer.
const SLOW: Duration = Duration::from_secs(5);

/// How long a reader rests who has the patience to ask again.
const PAUSE: Duration = Duration::from_secs(1);

/// An open image under its export name.
#[derive(Debug)]
pub struct ImageExport {
    name: String,
    image: Arc<Image>,
    /// What is fetched as long as it is exported.
    background: Option<Background>,
    recorder: Option<Arc<Recorder>>,
    meter: Meter,
    /// How long a read may take.
    patience: Duration,
    counts: Counts,
    /// Reads that wait: when each began, and where it is, by a number of its own.
    waits: Mutex<BTreeMap<u64, (Instant, u64)>>,
    /// What the last read that failed failed of, until a server is back.
    said: Mutex<Option<Error>>,
    /// When reads that nothing local answers began to fail; none while the last of them succeeded.
    failing: Mutex<Option<SystemTime>>,
}

/// What was asked of an export so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Reads, all.
    pub(crate) reads: AtomicU64,
    /// Their bytes.
    pub(crate) bytes: AtomicU64,
    /// Reads that nothing local answered.
    pub(crate) waited: AtomicU64,
    /// Reads that ended in an error.
    pub(crate) errors: AtomicU64,
}

/// Reads of an export that wait for a server, or a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many.
    pub reads: u64,
    /// For how long the oldest of them waits, in seconds.
    pub seconds: u64,
    /// Where on the disk that one is.
    pub offset: u64,
}

/// A read that waits, until dropped.
struct Wait<'a>(&'a ImageExport, u64);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.waits().remove(&self.1);
    }
}

impl ImageExport {
    /// Exports `image` as `name`.
    pub fn new(name: String, image: Arc<Image>) -> Self {
        let (meter, counts, waits) = (Meter::default(), Counts::default(), Mutex::default());
        let patience = READ_DEADLINE;
        let (said, failing) = (Mutex::default(), Mutex::default());
        ImageExport {
            name,
            image,
            background: None,
            recorder: None,
            meter,
            patience,
            counts,
            waits,
            said,
            failing,
        }
    }

    /// Reads take at most `patience`, and the server is asked again until then. Without it they take at most
    /// [`READ_DEADLINE`], and what the server's absence has shown to be in vain ends at once.
    pub(crate) fn with_patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience.unwrap_or(self.patience);
        self
    }

    /// Reads until that succeeds, or there is no more patience for it.
    async fn patiently<T, F>(&self, read: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            match tokio::time::timeout_at(deadline, read()).await {
                Ok(Err(error)) if error.kind == Kind::Away && self.patience > READ_DEADLINE => {
                    if tokio::time::timeout_at(deadline, tokio::time::sleep(PAUSE)).await.is_err() {
                        return Err(error);
                    }
                }
                Ok(result) => return result,
                Err(_) => {
                    let what = format!("no answer within {} s", self.patience.as_secs());
                    return Err(Error::failed(what));
                }
            }
        }
    }

    /// Fetches in the background what `wishes` say. Must run in a tokio runtime.
    pub(crate) fn with_background(mut self, wishes: Wishes, sources: backends::Options) -> Self {
        self.background = Some(Background::begin(self.image.clone(), wishes, sources));
        self
    }

    /// Writes down what is read.
    pub(crate) fn with_recorder(mut self, recorder: Arc<Recorder>) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    fn waits(&self) -> MutexGuard<'_, BTreeMap<u64, (Instant, u64)>> {
        // An entry is put in or taken out in one step.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reads that wait at this moment, if any do.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let waits = self.waits();
        let (began, offset) = *waits.values().next()?;
        Some(Waiting { reads: waits.len() as u64, seconds: began.elapsed().as_secs(), offset })
    }

    /// Since when nothing that is not local can be read; none if it could be when it was last tried.
    ///
    /// A read that waits longer than servers take counts, too, though it may still come to a good end.
    pub(crate) fn silent_since(&self) -> Option<SystemTime> {
        let failing = *self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.waiting().filter(|waiting| waiting.seconds >= SLOW.as_secs());
        failing.or_else(|| SystemTime::now().checked_sub(Duration::from_secs(waiting?.seconds)))
    }

    /// Notes how a read ended that nothing local answered.
    fn note_end<T>(&self, result: &Result<T>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => *failing = None,
            Err(_) => *failing = failing.or_else(|| Some(SystemTime::now())),
        }
    }

    fn begin_wait(&self, offset: u64) -> Wait<'_> {
        // Numbers count up, so that the first entry is the oldest.
        let number = self.counts.waited.fetch_add(1, Ordering::Relaxed);
        self.waits().insert(number, (Instant::now(), offset));
        Wait(self, number)
    }

    /// How much of it is local. None if that cannot be said now.
    pub async fn progress(&self) -> Option<Progress> {
        self.meter.look(&self.image).await
    }

    fn note(&self, offset: u64, len: u32) {
        if let Some(recorder) = &self.recorder {
            recorder.note(offset, len.into());
        }
    }

    /// The image.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    fn said(&self) -> MutexGuard<'_, Option<Error>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a read that failed, and says so: once, whatever else fails for the same reason.
    fn report(&self, offset: u64, len: u64, error: &Error) -> Failure {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
        let before = self.said().replace(error.clone());
        if before.is_some_and(|before| before.message == error.message) {
            tracing::debug!(export = self.name, "read of {len} bytes at {offset:#x} failed: {error}");
        } else {
            tracing::error!(export = self.name, "read of {len} bytes at {offset:#x} failed: {error}");
        }
        Failure { errno: Errno::Io, at: error.at }
    }

    /// A server answered: that it was away has passed.
    fn fetched(&self) {
        let mut said = self.said();
        if said.as_ref().is_some_and(|error| error.kind == Kind::Away) {
            *said = None;
        }
    }
}

impl Export for ImageExport {
    fn info(&self) -> ExportInfo {
        let cluster = self.image.layers().next().and_then(|(_, layer)| layer.info().cluster_size);
        let preferred = cluster.unwrap_or(4096).clamp(4096, 64 << 10).next_power_of_two();
        ExportInfo {
            size: self.image.virtual_size(),
            preferred_block: u32::try_from(preferred).unwrap_or(4096),
            description: self.image.location().to_string(),
        }
    }

    fn try_read(
        &self,
        offset: u64,
        len: u32,
        out: &mut Segments,
    ) -> Option<std::result::Result<(), Failure>> {
        self.note(offset, len);
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
        let mut pieces = Pieces::new();
        match self.image.try_read(offset, u64::from(len), &mut pieces) {
            Ok(false) => None,
            Ok(true) => Some(segments(pieces, out).map_err(|error| self.report(offset, len.into(), &error))),
            Err(error) => Some(Err(self.report(offset, len.into(), &error))),
        }
    }

    async fn read(&self, offset: u64, len: u32) -> std::result::Result<Segments, Failure> {
        let _wait = self.begin_wait(offset);
        let began = Instant::now();
        let image = &*self.image;
        let pieces = self.patiently(|| image.read(offset, u64::from(len))).await;
        self.note_end(&pieces);
        let mut out = Segments::new();
        match pieces.and_then(|pieces| segments(pieces, &mut out)) {
            Ok(()) => {
                self.fetched();
                tracing::debug!(export = self.name, offset, len, elapsed = ?began.elapsed(), "fetched");
                Ok(out)
            }
            Err(error) => Err(self.report(offset, len.into(), &error)),
        }
    }

    async fn reread(&self, offset: u64, len: u32) -> std::result::Result<Bytes, Errno> {
        let image = &*self.image;
        let bytes = self.patiently(|| image.reread(offset, u64::from(len))).await;
        self.note_end(&bytes);
        bytes.map_err(|error| self.report(offset, len.into(), &error).errno)
    }

    async fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> std::result::Result<Vec<Extent>, Errno> {
        let mut walk = self.image.walk_local(offset, offset + len).await;
        let mut extents = Vec::new();
        while extents.len() < max {
            let stretch = match walk.next().await {
                Ok(Some(stretch)) => stretch,
                Ok(None) => break,
                Err(_) if !extents.is_empty() => break,
                Err(error) => return Err(self.report(offset, len, &error).errno),
            };
            let mut flags = ExtentFlags::empty();
            flags.set(ExtentFlags::ZERO, stretch.zero);
            flags.set(ExtentFlags::HOLE, stretch.zero);
            let depth = if stretch.present { stretch.layer as u32 + 1 } else { 0 };
            extents.push(Extent { len: stretch.len, flags, depth, local: stretch.local });
        }
        Ok(extents)
    }

    async fn prefetch(&self, offset: u64, len: u64) {
        /// Little enough that the whole disk can be asked for without being held in memory.
        const STEP: u64 = 1 << 20;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let step = STEP.min(end - at);
            if let Err(error) = self.image.read(at, step).await {
                tracing::debug!(export = self.name, at, step, "prefetch failed: {error}");
                return;
            }
            at += step;
        }
    }
}

/// A lease, as what the protocol sends from.
#[derive(Debug)]
#[repr(transparent)]
struct Sent(Lease);

impl Sent {
    fn of(lease: Arc<Lease>) -> Arc<Sent> {
        // SAFETY: both are the same in memory.
        unsafe { Arc::from_raw(Arc::into_raw(lease).cast()) }
    }
}

impl AsFd for Sent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FileBytes for Sent {
    fn in_memory(&self, offset: u64, len: u32) -> bool {
        self.0.holds(offset..offset + u64::from(len))
    }

    fn memory(&self, offset: u64, len: u32) -> Option<IoSlice<'_>> {
        self.0.memory(offset..offset + u64::from(len))
    }
}

/// Hands `pieces` to the protocol.
fn segments(pieces: Pieces, out: &mut Segments) -> Result<()> {
    let too_long = || Error::failed("a piece longer than a request");
    for piece in pieces {
        out.push(match piece {
            Piece::Zero(len) => Segment::Zero(u32::try_from(len).map_err(|_| too_long())?),
            Piece::Span(Span::Bytes(bytes)) => Segment::Bytes(bytes),
            Piece::Span(Span::File { lease, offset, len }) => {
                let len = u32::try_from(len).map_err(|_| too_long())?;
                Segment::File { file: Sent::of(lease), offset, len }
            }
        });
    }
    Ok(())
}
