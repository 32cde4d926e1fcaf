//! One way to an object: a server that holds it, and what is known of that server.

use super::answer::{self, Part, Pinned, Validator};
use super::circuit::Circuit;
use super::endpoint::{self, Endpoint};
use super::lanes::Lanes;
use super::pace::Pace;
use crate::retry::Failure;
use crate::tries::{Fault, Tries};
use crate::{Error, Kind, Location, Options};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Instant, sleep, timeout_at};

/// How much the first request asks for. Its bytes answer the reads that find out what the image is and where its first bytes
/// are, each of which would cost another round trip: in a qcow2 with clusters of 64 KiB the header, the tables of refcounts,
/// the L1 table and the first L2 table.
const HEAD: u64 = 320 << 10;

/// The same of an object whose beginning is in the cache.
const HEAD_KNOWN: u64 = 512;

/// How many of the last bytes are asked for beside the first: as many as the cache reads to see one of them.
const LAST: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Way {
    pub(super) endpoint: Endpoint,
    /// How much the first request asks for.
    head: u64,
    circuit: Arc<Circuit>,
    lanes: Lanes,
    pace: Pace,
    /// What this server holds is not the object that was opened.
    out: AtomicBool,
}

/// What opening an object says of it, and brings of it.
pub(super) struct OpenedWay {
    pub(super) pinned: Pinned,
    pub(super) first: Bytes,
    /// Nothing, or up to where the object ends.
    pub(super) last: Bytes,
}

impl OpenedWay {
    fn new((part, first): (Part, Bytes)) -> OpenedWay {
        OpenedWay {
            pinned: Pinned { size: part.total, validator: part.validator },
            first,
            last: Bytes::new(),
        }
    }
}

impl Way {
    pub(super) fn new(options: &Options, location: &Location) -> Result<Way, Error> {
        let endpoint = Endpoint::new(options, location)?;
        Ok(Way {
            circuit: options.circuits.of(&endpoint.server()),
            endpoint,
            head: if options.known { HEAD_KNOWN } else { HEAD },
            lanes: Lanes::new(),
            pace: Pace::new(),
            out: AtomicBool::new(false),
        })
    }

    /// Whether the server can be reached, as far as is known.
    pub(super) fn is_clear(&self) -> bool {
        self.circuit.is_clear()
    }

    pub(super) fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    /// Takes this server out for good.
    pub(super) fn take_out(&self) {
        self.out.store(true, Ordering::Relaxed);
    }

    /// Opens an object by asking for its first bytes; with `ends`, for its last ones as well. One of `tries`, of which it may take
    /// the time until `deadline`.
    pub(super) async fn open(
        &self,
        ends: bool,
        deadline: Instant,
        tries: &Tries,
    ) -> Result<OpenedWay, Fault> {
        let began = Instant::now();
        let first = timeout_at(deadline, self.first());
        let opened = |first: Result<_, _>| Ok(OpenedWay::new(first.map_err(|_| tries.out_of_time())??));
        if !ends {
            return opened(first.await);
        }
        let (mut first, mut last) = (pin!(first), pin!(self.last()));
        let (first, last_came) = tokio::select! {
            // So that it is sent first.
            biased;
            first = &mut first => (first, None),
            last = &mut last => (first.await, Some(last)),
        };
        let mut opened = opened(first)?;
        let at_hand = opened.first.len() as u64 == opened.pinned.size;
        // Some servers answer one request after the other, and some never answer this one.
        let late = deadline.min(Instant::now() + began.elapsed());
        let last = match last_came {
            _ if at_hand => return Ok(opened),
            Some(last) => Ok(last),
            None => timeout_at(late, last).await,
        };
        match last {
            Ok(Ok((part, last))) if opened.pinned.is_of(&part) => opened.last = last,
            Ok(Ok(_)) => tracing::debug!("the last bytes may be of another version: they are not used"),
            Ok(Err(fault)) => tracing::debug!("the last bytes did not come: {}", fault.what),
            Err(_) => tracing::debug!("the last bytes did not come in time"),
        }
        Ok(opened)
    }

    async fn first(&self) -> Result<(Part, Bytes), Fault> {
        let asked = 0..self.head;
        let answer = self.endpoint.get(&asked, HeaderMap::new()).await?;
        let part = answer::first(answer.status(), answer.headers(), &asked)?;
        whole(answer, part).await
    }

    async fn last(&self) -> Result<(Part, Bytes), Fault> {
        let answer = self.endpoint.get_last(LAST).await?;
        let part = answer::last(answer.status(), answer.headers(), LAST)?;
        whole(answer, part).await
    }

    /// Asks for `range` of the object `pinned`, once the server may be asked; appends what it brings to `body`, which
    /// on failure holds what came until then. One of `tries`.
    pub(super) async fn read(
        &self,
        range: Range<u64>,
        body: &mut BytesMut,
        pinned: &Pinned,
        tries: &Tries,
    ) -> Result<(), Fault> {
        let deadline = tries.deadline();
        let lane = timeout_at(deadline, self.lanes.enter(range.end - range.start)).await;
        let _lane = lane.map_err(|_| tries.out_of_time())?;
        let pass = self.circuit.enter(deadline).await?;
        let outcome = timeout_at(deadline, self.try_twice(range, body, pinned)).await;
        let outcome = outcome.map_err(|_| tries.out_of_time())?;
        pass.report(outcome.as_ref().copied());
        match &outcome {
            Ok(()) => self.lanes.answered(),
            Err(fault) if matches!(fault.failure, Failure::Busy(_)) => self.lanes.crowded(),
            Err(_) => {}
        }
        outcome
    }

    /// One request for `range`, and a second one if the first is late. Appends as [`try_once`](Self::try_once) does.
    async fn try_twice(&self, range: Range<u64>, body: &mut BytesMut, pinned: &Pinned) -> Result<(), Fault> {
        let began = Instant::now();
        let had = body.len();
        let mut other = BytesMut::new();
        let outcome = {
            let mut first = pin!(self.try_once(range.clone(), body, pinned));
            let late = tokio::select! {
                outcome = &mut first => Some(outcome),
                () = sleep(self.pace.late()) => None,
            };
            // Two answers without a validator might be of two versions.
            let may_repeat = || pinned.validator != Validator::None && self.pace.may_repeat();
            match (late, self.lanes.try_enter(range.end - range.start)) {
                (Some(outcome), _) => outcome,
                (None, Some(_lane)) if may_repeat() => {
                    tracing::debug!(
                        server = self.endpoint.server(),
                        ?range,
                        "a request is late: another is sent"
                    );
                    let mut second = pin!(self.try_once(range, &mut other, pinned));
                    tokio::select! {
                        outcome = &mut first => match outcome {
                            Err(fault) if fault.kind != Kind::Changed => second.await.map_err(|_| fault),
                            outcome => outcome,
                        },
                        outcome = &mut second => match outcome {
                            Err(fault) if fault.kind != Kind::Changed => first.await,
                            outcome => outcome,
                        },
                    }
                }
                (None, _) => first.await,
            }
        };
        if outcome.is_ok() {
            self.pace.took(began.elapsed());
            // Either is whole, or the other is.
            if other.len() > body.len() - had {
                body.truncate(had);
                body.extend_from_slice(&other);
            }
        }
        outcome
    }

    /// One request for `range`; appends what it brings to `body`, which on failure holds what came until then.
    async fn try_once(&self, range: Range<u64>, body: &mut BytesMut, pinned: &Pinned) -> Result<(), Fault> {
        let condition = pinned.validator.precondition().into_iter().collect::<HeaderMap>();
        let answer = self.endpoint.get(&range, condition).await?;
        let part = answer::later(answer.status(), answer.headers(), &range, pinned)?;
        receive(answer, &part, body).await?;
        if part.range.end < range.end {
            // Fewer bytes than asked for are allowed; the rest is another request.
            return Err(Fault::new(
                Kind::BadAnswer,
                Failure::Transient,
                "the server sends ranges in small pieces",
            ));
        }
        Ok(())
    }
}

/// The body of an answer that announced `part`.
async fn whole(answer: reqwest::Response, part: Part) -> Result<(Part, Bytes), Fault> {
    let mut body = BytesMut::new();
    receive(answer, &part, &mut body).await?;
    Ok((part, body.freeze()))
}

/// Appends the body to `out`: exactly the bytes of `part`, or a fault. If the connection broke before an announced
/// length was reached, what came is kept, for it is the start of the right answer; of a body that is wrong in another
/// way nothing is.
async fn receive(mut answer: reqwest::Response, part: &Part, out: &mut BytesMut) -> Result<(), Fault> {
    let (had, len) = (out.len(), part.range.end - part.range.start);
    let announced = answer.content_length() == Some(len);
    let mut left = len;
    let fault = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => match left.checked_sub(chunk.len() as u64) {
                Some(rest) => {
                    left = rest;
                    out.extend_from_slice(&chunk);
                }
                None => {
                    let what = "the server sent more bytes than its answer announced";
                    break Fault::new(Kind::BadAnswer, Failure::Wrong, what);
                }
            },
            Ok(None) if left == 0 => match &part.checksum {
                Some(checksum) if !checksum.is_of(&out[had..]) => {
                    let what = "the server sent other bytes than those that its checksum is of";
                    break Fault::new(Kind::BadAnswer, Failure::Wrong, what);
                }
                _ => return Ok(()),
            },
            Ok(None) => {
                let what = format!("the answer ended {left} bytes early");
                break Fault::new(Kind::BadAnswer, Failure::Wrong, what);
            }
            Err(error) if announced => return Err(endpoint::transport(&error, Failure::Transient)),
            Err(error) => break endpoint::transport(&error, Failure::Transient),
        }
    };
    out.truncate(had);
    Err(fault)
}
