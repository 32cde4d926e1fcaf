//! One connection, driven.
//!
//! One task owns the socket, the receive buffer and the [`Outbox`]. It takes as many requests from one receive buffer as
//! there are, answers at once what [`Export::try_read`] has at hand, and spawns a task for the rest; replies leave in
//! the order in which they are ready. It stops taking requests while too many bytes wait to be sent or to be fetched,
//! so that a client which does not read its replies fills its own socket and nothing else.

mod disk;
mod encrypted;
mod lines;
mod linger;
mod negotiate;
mod outbox;
mod plain;
mod transport;

pub use encrypted::Encrypted;
pub(crate) use negotiate::{Settled, negotiate};
pub use transport::{Aside, Stream};

use crate::session::{Event, Session};
use crate::wire::consts::{CommandFlags, MAX_PAYLOAD};
use crate::wire::{Command, Request, encode_done, encode_error, encode_read, encode_status};
use crate::{Errno, Export, Extent, Failure, Limits, Segment, Segments};
use bytes::{Bytes, BytesMut};
use linger::Pace;
use outbox::Outbox;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Room for bytes to come: hundreds of requests at a time.
const RECEIVE: usize = 16 << 10;
/// No more requests are taken while this many bytes wait to be sent.
const OUTBOX_MAX: u64 = 1 << 20;
/// A client is no stranger any more after so many requests that were no mistake.
const GREETED: u64 = 32;
/// Most requests of one connection that are under way in tasks of their own.
const TASKS_MAX: usize = 512;
/// Most threads that read from a disk for one connection.
const DISK_THREADS: usize = 8;
/// Most extents in one reply.
const EXTENTS_MAX: usize = 8 << 10;
/// How many extents are asked for where one per context is wanted: they are merged per context, and what splits the
/// export's extents may not split the context's.
const EXTENTS_FOR_ONE: usize = 256;
/// Unit of the semaphore that bounds memory, in bytes.
const PERMIT: u64 = 1 << 10;

/// What connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    /// Bytes that may be in memory for reads under way, in units of [`PERMIT`].
    memory: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        // The largest request must be possible, or it would wait for ever.
        let bytes = limits.memory.max(u64::from(MAX_PAYLOAD));
        let permits = usize::try_from(bytes / PERMIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { limits, memory: Arc::new(Semaphore::new(permits)) }
    }
}

/// What a task of its own found out.
enum Found {
    Read(Request, Result<Segments, Failure>),
    Loaded(disk::Loaded),
    Status(Request, Result<Vec<Extent>, Errno>),
    Cached(Request),
}

struct Done {
    found: Found,
    permit: Option<OwnedSemaphorePermit>,
}

/// How a connection came to its end in order.
pub(crate) enum End {
    /// The client left, or is in the middle of something that cannot be gone on with.
    Left(Stream),
    /// All requests that came are answered. The bytes are the beginning of one that has not come whole.
    Drained(Stream, BytesMut),
}

impl End {
    /// Takes leave.
    pub(crate) async fn close(self) {
        let (Self::Left(mut stream) | Self::Drained(mut stream, _)) = self;
        stream.close().await;
    }
}

/// Why a connection is not driven on.
enum Halt {
    /// The client left.
    Left,
    /// What is under way is to be answered, and no more.
    Drain,
    /// The client has asked for enough.
    Known,
}

/// Bytes of the disk, on their way.
type Mending = Pin<Box<dyn Future<Output = Result<Bytes, Errno>> + Send>>;

/// The transmission phase of one connection.
pub(crate) struct Connection<E> {
    stream: Stream,
    /// The runtime that is told of the socket.
    home: Handle,
    input: BytesMut,
    session: Session,
    export: Arc<E>,
    shared: Arc<Shared>,
    outbox: Outbox,
    /// The bytes that the outbox waits for, because a file does not give them.
    mending: Option<Mending>,
    scratch: Segments,
    tasks: JoinSet<Done>,
    /// Reads that a disk is to be asked for when all that have been received were looked at.
    from_disk: disk::Batch,
    disk_threads: Arc<Semaphore>,
    /// Bytes asked for by `tasks`.
    in_flight: u64,
    /// Whether more bytes may come and matter.
    reading: bool,
    /// Whether the client wants no more.
    left: bool,
    /// Requests that were no mistake, ever.
    executed: u64,
    /// Bytes sent, ever; to see whether any are between two looks.
    sent: u64,
    pace: Pace,
}

impl<E: Export> Connection<E> {
    /// A connection that has been negotiated.
    pub(crate) fn new(settled: Settled<E>, shared: Arc<Shared>) -> Self {
        let Settled { stream, input, session, export } = settled;
        stream.widen();
        let outbox = if stream.is_plain() { Outbox::by_kernel() } else { Outbox::default() };
        Self {
            stream,
            home: Handle::current(),
            input,
            session,
            export,
            shared,
            outbox,
            mending: None,
            scratch: Segments::new(),
            tasks: JoinSet::new(),
            from_disk: disk::Batch::default(),
            disk_threads: Arc::new(Semaphore::new(DISK_THREADS)),
            in_flight: 0,
            reading: true,
            left: false,
            executed: 0,
            sent: 0,
            pace: Pace::new(),
        }
    }

    /// Serves until the client leaves or `drain` is cancelled; then answers what has been received and returns, with the
    /// stream still open. A reply that cannot be sent, a client out of step and a task that panicked are errors. Dropping
    /// the future abandons the reads under way.
    pub(crate) async fn run(mut self, drain: CancellationToken) -> io::Result<End> {
        match self.drive(&drain, u64::MAX).await? {
            Halt::Left => Ok(End::Left(self.stream)),
            Halt::Drain | Halt::Known => self.finish().await,
        }
    }

    /// Serves until the client has asked for some bytes that are there, and is to be served on by [`run`](Self::run). That
    /// may be elsewhere, after [`rehome`](Self::rehome). `None`: the client left.
    pub(crate) async fn greet(mut self, drain: &CancellationToken) -> io::Result<Option<Self>> {
        match self.drive(drain, GREETED).await? {
            Halt::Left => {
                self.stream.close().await;
                Ok(None)
            }
            Halt::Drain | Halt::Known => Ok(Some(self)),
        }
    }

    /// Goes on in the runtime that the caller is in.
    pub(crate) fn rehome(&mut self) -> io::Result<()> {
        self.home = Handle::current();
        self.stream.rehome()
    }

    async fn drive(&mut self, drain: &CancellationToken, enough: u64) -> io::Result<Halt> {
        let mut cancelled = pin!(drain.cancelled());
        let period = self.shared.limits.send_stall;
        let mut stall = interval_at(Instant::now() + period, period);
        stall.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent_before = 0;
        loop {
            self.take_requests()?;
            if self.finished() {
                return Ok(Halt::Left);
            }
            if drain.is_cancelled() {
                return Ok(Halt::Drain);
            }
            if self.executed >= enough {
                return Ok(Halt::Known);
            }
            if self.linger()? {
                if self.pace.has_had_its_turn() {
                    yield_now().await;
                }
                continue;
            }
            poll_fn(|cx| {
                let drained = cancelled.as_mut().poll(cx).is_ready();
                let stalled = self.poll_stalled(cx, &mut stall, &mut sent_before);
                match self.poll_progress(cx) {
                    Poll::Pending if drained => Poll::Ready(Ok(())),
                    Poll::Pending => stalled.map(Err),
                    ready => ready,
                }
            })
            .await?;
        }
    }

    /// Serves until the client leaves or there is an instant in which nothing is under way and nothing more has come, and
    /// after `limit` stops as [`run`](Self::run) does.
    pub(crate) async fn run_until_quiet(mut self, limit: Duration) -> io::Result<End> {
        let mut limit = pin!(sleep(limit));
        let mut quiet = false;
        while !quiet {
            self.take_requests()?;
            quiet = self.finished()
                || poll_fn(|cx| match self.poll_progress(cx) {
                    Poll::Ready(progress) => Poll::Ready(progress.map(|()| false)),
                    Poll::Pending if self.is_quiet() => {
                        Poll::Ready(self.receive_now().map(|received| !received))
                    }
                    Poll::Pending => limit.as_mut().poll(cx).map(|()| Ok(true)),
                })
                .await?;
        }
        self.finish().await
    }

    /// Receives what has come, also what the connection has not been told of; whether anything has.
    fn receive_now(&mut self) -> io::Result<bool> {
        self.input.reserve(RECEIVE);
        let received = self.stream.fill_now(&mut self.input)?;
        received.into_iter().for_each(|bytes| self.received(bytes));
        Ok(received.is_some())
    }

    /// Whether nothing is under way, as far as requests have been received.
    fn is_quiet(&self) -> bool {
        let answered = self.tasks.is_empty() && self.outbox.pending() == 0 && !self.stream.has_unsent();
        answered && self.input.is_empty() && self.session.between_requests()
    }

    /// Answers what has been received, and reads no more.
    async fn finish(mut self) -> io::Result<End> {
        self.stream.listen()?;
        self.reading = false;
        match timeout(self.shared.limits.drain, self.drain()).await {
            Ok(Ok(())) if self.left || !self.session.between_requests() => Ok(End::Left(self.stream)),
            Ok(Ok(())) => Ok(End::Drained(self.stream, self.input)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "requests under way were not answered in time"))
            }
        }
    }

    /// Answers what has been received.
    async fn drain(&mut self) -> io::Result<()> {
        loop {
            self.take_requests()?;
            if self.finished() {
                return Ok(());
            }
            poll_fn(|cx| self.poll_progress(cx)).await?;
        }
    }

    fn finished(&self) -> bool {
        let sent = self.outbox.pending() == 0 && !self.stream.has_unsent();
        !self.reading && !self.paused() && self.tasks.is_empty() && sent
    }

    /// Whether enough is under way.
    fn paused(&self) -> bool {
        self.outbox.pending() >= OUTBOX_MAX
            || self.tasks.len() >= TASKS_MAX
            || self.in_flight >= self.shared.limits.connection_memory
    }

    /// An error when the client has taken nothing of what waits for it since the last tick.
    fn poll_stalled(
        &self,
        cx: &mut Context<'_>,
        ticks: &mut Interval,
        sent_before: &mut u64,
    ) -> Poll<io::Error> {
        while ticks.poll_tick(cx).is_ready() {
            let waiting = self.outbox.pending() > 0 && self.mending.is_none();
            if waiting && self.sent == *sent_before {
                return Poll::Ready(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not take its replies",
                ));
            }
            *sent_before = self.sent;
        }
        Poll::Pending
    }

    /// Sends, receives and collects finished tasks; ready when anything came of it.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut progress = false;
        while let Poll::Ready(Some(done)) = self.tasks.poll_join_next(cx) {
            // A task is never cancelled while the connection lives, so that this is a panic: it ends the connection.
            let done = done.map_err(io::Error::other)?;
            self.answer(done);
            progress = true;
        }
        if let Some(mending) = &mut self.mending
            && let Poll::Ready(bytes) = mending.as_mut().poll(cx)
        {
            self.mending = None;
            // The header of this reply has been sent, so that there is no way back to an error reply.
            let bytes = bytes.map_err(|_| {
                io::Error::other("a local file could not be read, nor the bytes be had elsewhere")
            })?;
            if self.outbox.broken().is_none_or(|(_, len)| bytes.len() != len as usize) {
                return Poll::Ready(Err(io::Error::other("the export gave another number of bytes")));
            }
            self.outbox.mend(bytes);
            progress = true;
        }
        let pending = self.outbox.pending();
        if self.mending.is_none() && (pending > 0 || self.stream.has_unsent()) {
            let sent = self.stream.poll_send(cx, &mut self.outbox);
            self.sent += pending - self.outbox.pending();
            progress |= self.outbox.pending() < pending;
            if let Poll::Ready(sent) = sent {
                sent?;
                progress = true;
            }
            if let Some((offset, len)) = self.outbox.broken() {
                let export = Arc::clone(&self.export);
                self.mending = Some(Box::pin(async move { export.reread(offset, len).await }));
            }
        }
        // Whose client is waited for awake has the runtime listen only if nothing else came of this.
        if self.reading && !self.paused() && !(progress && self.stream.is_aside()) {
            self.input.reserve(RECEIVE);
            if let Poll::Ready(received) = self.stream.poll_fill(cx, &mut self.input) {
                self.received(received?);
                progress = true;
            }
        }
        if progress { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn received(&mut self, bytes: usize) {
        self.left = bytes == 0;
        self.reading = !self.left;
        self.pace.received();
    }

    /// Looks for the next request of a client that asks for one thing after the other, for as long as such a client takes
    /// to ask; whether anything came.
    fn linger(&mut self) -> io::Result<bool> {
        let idle = self.tasks.is_empty() && self.outbox.pending() == 0 && !self.stream.has_unsent();
        if !idle || !self.reading {
            return Ok(false);
        }
        self.input.reserve(RECEIVE);
        let Some(bytes) = self.pace.linger(|| self.stream.fill_now(&mut self.input))? else {
            self.stream.listen()?;
            return Ok(false);
        };
        if self.pace.is_steady() {
            self.stream.set_aside(&self.home);
        }
        self.received(bytes);
        Ok(true)
    }

    /// Takes requests off the receive buffer while there are any and not too much is under way.
    fn take_requests(&mut self) -> io::Result<()> {
        while !self.paused() {
            match self.session.receive(&mut self.input) {
                Event::More => break,
                Event::Request(request) => {
                    self.pace.request();
                    self.execute(request);
                }
                Event::Refused(request, errno) => {
                    tracing::debug!(?request, ?errno, "refused");
                    self.answer_error(&request, errno);
                }
                Event::Disconnect => (self.left, self.reading) = (true, false),
                Event::Malformed(malformed) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, malformed));
                }
                Event::TooLong(request) => {
                    let text = format!("the client announced {} bytes of payload", request.length);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        self.ask_disk();
        Ok(())
    }

    fn execute(&mut self, request: Request) {
        self.executed += 1;
        match request.command {
            Command::Read => self.read(request),
            Command::BlockStatus => {
                let export = Arc::clone(&self.export);
                let one = request.flags.contains(CommandFlags::REQ_ONE);
                let max = if one { EXTENTS_FOR_ONE } else { EXTENTS_MAX };
                self.tasks.spawn(async move {
                    let extents = export.block_status(request.offset, request.length, max).await;
                    Done { found: Found::Status(request, extents), permit: None }
                });
            }
            Command::Cache => {
                let export = Arc::clone(&self.export);
                self.tasks.spawn(async move {
                    export.prefetch(request.offset, request.length).await;
                    Done { found: Found::Cached(request), permit: None }
                });
            }
            // FLUSH has nothing to do; no other command passes validation.
            _ => encode_done(self.session.terms().headers, &request, &mut self.outbox),
        }
    }

    fn read(&mut self, request: Request) {
        // Validation bounds the length far below 4 GiB.
        let len = request.length as u32;
        let mut segments = std::mem::take(&mut self.scratch);
        match self.export.try_read(request.offset, len, &mut segments) {
            Some(Ok(())) => self.answer_read(&request, &segments, false),
            Some(Err(failure)) => self.answer_error(&request, failure),
            None => {
                self.in_flight += request.length;
                let export = Arc::clone(&self.export);
                let memory = Arc::clone(&self.shared.memory);
                let permits = request.length.div_ceil(PERMIT) as u32;
                self.tasks.spawn(async move {
                    // The semaphore is never closed.
                    let permit = memory.acquire_many_owned(permits).await.ok();
                    let segments = export.read(request.offset, len).await;
                    Done { found: Found::Read(request, segments), permit }
                });
            }
        }
        segments.clear();
        self.scratch = segments;
    }

    fn answer(&mut self, done: Done) {
        let Done { found, permit } = done;
        let headers = self.session.terms().headers;
        match found {
            Found::Read(request, segments) => {
                self.in_flight -= request.length;
                match segments {
                    Ok(segments) => self.answer_read(&request, &segments, false),
                    Err(failure) => self.answer_error(&request, failure),
                }
            }
            Found::Loaded(reads) => {
                for (request, segments) in reads {
                    self.in_flight -= request.length;
                    match segments {
                        Ok(segments) => self.answer_read(&request, &segments, true),
                        Err(error) => {
                            let (len, at) = (request.length, request.offset);
                            tracing::debug!(%error, "{len} bytes at {at:#x} cannot be read from a local file");
                            self.read_again(request);
                        }
                    }
                }
            }
            Found::Cached(request) => encode_done(headers, &request, &mut self.outbox),
            Found::Status(request, Err(errno)) => self.answer_error(&request, errno),
            Found::Status(request, Ok(extents)) => self.answer_status(&request, &extents),
        }
        if let Some(permit) = permit {
            self.outbox.release_after(permit);
        }
    }

    /// Queues a reply. The disk may have been `fetched` from a moment ago, by which it has come to be at hand.
    fn answer_read(&mut self, request: &Request, segments: &[Segment], fetched: bool) {
        let len: u64 = segments.iter().map(|segment| u64::from(segment.len())).sum();
        if len != request.length {
            tracing::error!(?request, "the export gave {len} bytes");
            return self.answer_error(request, Errno::Io);
        }
        let mark = self.outbox.mark();
        self.outbox.begin_read(request.offset, fetched);
        let headers = self.session.terms().headers;
        if let Err(errno) = encode_read(headers, request, segments, &mut self.outbox) {
            let cold = self.outbox.rollback(&mark);
            match segments.iter().any(|segment| matches!(segment, Segment::File { .. })) {
                true if cold => self.read_from_disk(*request, Segments::from(segments)),
                true => self.read_again(*request),
                false => self.answer_error(request, errno),
            }
        }
    }

    /// Answers a read whose bytes are in a file, of which a disk has yet to give some; soon.
    fn read_from_disk(&mut self, request: Request, segments: Segments) {
        if self.from_disk.is_full_for(request.length) {
            self.ask_disk();
        }
        self.in_flight += request.length;
        self.from_disk.push(request, segments);
    }

    /// Begins the reads that wait for this.
    fn ask_disk(&mut self) {
        if self.from_disk.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.from_disk);
        let (memory, threads) = (Arc::clone(&self.shared.memory), Arc::clone(&self.disk_threads));
        let permits = batch.bytes().div_ceil(PERMIT) as u32;
        self.tasks.spawn(async move {
            // The semaphores are never closed.
            let permit = memory.acquire_many_owned(permits).await.ok();
            let _thread = threads.acquire().await.ok();
            Done { found: Found::Loaded(batch.load().await), permit }
        });
    }

    /// Answers a read whose bytes were in a file that does not give them.
    fn read_again(&mut self, request: Request) {
        self.in_flight += request.length;
        let export = Arc::clone(&self.export);
        self.tasks.spawn(async move {
            // Validation bounds the length far below 4 GiB.
            let bytes = export.reread(request.offset, request.length as u32).await;
            let segments =
                bytes.map(|bytes| Segments::from_iter([Segment::Bytes(bytes)])).map_err(Failure::from);
            Done { found: Found::Read(request, segments), permit: None }
        });
    }

    fn answer_status(&mut self, request: &Request, extents: &[Extent]) {
        let len: u64 = extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.len));
        if extents.is_empty() || extents.iter().any(|extent| extent.len == 0) || len > request.length {
            tracing::error!(?request, "the export gave {} extents of {len} bytes", extents.len());
            return self.answer_error(request, Errno::Io);
        }
        let mark = self.outbox.mark();
        let terms = *self.session.terms();
        if let Err(errno) = encode_status(terms.headers, terms.contexts, request, extents, &mut self.outbox) {
            self.outbox.rollback(&mark);
            self.answer_error(request, errno);
        }
    }

    fn answer_error(&mut self, request: &Request, failure: impl Into<Failure>) {
        encode_error(self.session.terms().headers, request, failure, &mut self.outbox);
    }
}
