//! HTTP, HTTPS and S3: exact ranges of an object that is pinned at open.
//!
//! The first answer says how large the object is and which version it is. Every later request carries that version
//! as a precondition, and every answer is checked in [`answer`] before its body is read: what servers, proxies and
//! caches get wrong becomes another try or an error, never bytes. A body that breaks off is continued where it ended,
//! under the same precondition.

mod answer;
mod auth;
mod circuit;
mod client;
mod endpoint;
mod lanes;
mod pace;
#[cfg(feature = "s3")]
mod s3;

pub(crate) use circuit::Circuits;
pub(crate) use client::Clients;
pub use client::install_crypto;

use crate::retry::{Failure, Policy};
use crate::tries::{Fault, Tries, error, out_of_time};
use crate::{Error, Identity, Kind, Location, Options, Source};
use answer::{Part, Pinned, Validator};
use bytes::{Bytes, BytesMut};
use circuit::Circuit;
use endpoint::Endpoint;
use http::HeaderMap;
use lanes::Lanes;
use pace::Pace;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::time::{Instant, sleep, timeout_at};

/// How much the first request asks for. Its bytes answer the reads that find out what the image is.
const HEAD: u64 = 64 << 10;

/// An object on an HTTP or S3 server.
#[derive(Debug)]
pub struct HttpSource {
    identity: Identity,
    pinned: Pinned,
    endpoint: Endpoint,
    policy: Policy,
    circuit: Arc<Circuit>,
    lanes: Lanes,
    pace: Pace,
    /// The object's first bytes, until something else is read.
    head: Mutex<Option<Bytes>>,
    /// Set for good when another version is seen.
    changed: OnceLock<Error>,
}

impl HttpSource {
    /// Opens the object at `location` with one request for its first bytes, and pins what the answer says.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        let endpoint = Endpoint::new(options, location)?;
        let policy = options.policy;
        let mut head = BytesMut::new();
        let mut tries = Tries::new(policy.opening());
        let part = loop {
            head.clear();
            let fault = match timeout_at(tries.deadline(), first(&endpoint, &mut head)).await {
                Ok(Ok(part)) => break part,
                Ok(Err(fault)) => fault,
                Err(_) => out_of_time(),
            };
            tries.failed(fault).await.map_err(|fault| error(location, &fault))?;
        };
        let pinned = Pinned { size: part.total, validator: part.validator };
        if pinned.validator == Validator::None {
            tracing::warn!(%location, "the server gives the object neither a strong ETag nor Last-Modified: changes cannot be noticed, and nothing is kept after it is closed");
        }
        Ok(HttpSource {
            identity: Identity {
                location: endpoint.canonical(),
                size: pinned.size,
                validator: pinned.validator.text(),
            },
            pinned,
            circuit: options.circuits.of(&endpoint.server()),
            endpoint,
            policy,
            lanes: Lanes::new(),
            pace: Pace::new(),
            head: Mutex::new(Some(head.freeze())),
            changed: OnceLock::new(),
        })
    }

    /// The error of a change that was seen, if one was. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        self.changed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The bytes of `range` if they are among the first ones and nothing else was asked for yet.
    fn in_head(&self, range: &Range<u64>) -> Option<Bytes> {
        let mut slot = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let head = slot.as_ref()?;
        if range.end <= head.len() as u64 {
            return Some(head.slice(range.start as usize..range.end as usize));
        }
        *slot = None;
        None
    }

    /// One request for `range`, and a second one if the first is late. Appends as [`try_once`](Self::try_once) does.
    async fn try_twice(&self, range: Range<u64>, body: &mut BytesMut) -> Result<(), Fault> {
        let began = Instant::now();
        let had = body.len();
        let mut other = BytesMut::new();
        let outcome = {
            let mut first = pin!(self.try_once(range.clone(), body));
            let late = tokio::select! {
                outcome = &mut first => Some(outcome),
                () = sleep(self.pace.late()) => None,
            };
            // Two answers without a validator might be of two versions.
            let may_repeat = || self.pinned.validator != Validator::None && self.pace.may_repeat();
            match (late, self.lanes.try_enter(range.end - range.start)) {
                (Some(outcome), _) => outcome,
                (None, Some(_lane)) if may_repeat() => {
                    tracing::debug!(
                        location = self.identity.location,
                        ?range,
                        "a request is late: another is sent"
                    );
                    let mut second = pin!(self.try_once(range, &mut other));
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
    async fn try_once(&self, range: Range<u64>, body: &mut BytesMut) -> Result<(), Fault> {
        let condition = self.pinned.validator.precondition().into_iter().collect::<HeaderMap>();
        let answer = self.endpoint.get(&range, condition).await?;
        let part = answer::later(answer.status(), answer.headers(), &range, &self.pinned)?;
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

impl Source for HttpSource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let len = crate::source::checked_len(&self.identity, &range)?;
        self.check()?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        if let Some(bytes) = self.in_head(&range) {
            return Ok(bytes);
        }
        let mut tries = Tries::new(self.policy);
        let Ok(_lane) = timeout_at(tries.deadline(), self.lanes.enter(len as u64)).await else {
            return Err(error(&self.identity.location, &out_of_time()));
        };
        let mut body = BytesMut::with_capacity(len);
        loop {
            let had = body.len();
            let rest = range.start + had as u64..range.end;
            let pass = self.circuit.enter(tries.deadline()).await;
            let pass = pass.map_err(|fault| error(&self.identity.location, &fault))?;
            let fault = match timeout_at(tries.deadline(), self.try_twice(rest, &mut body)).await {
                Ok(outcome) => {
                    pass.report(outcome.as_ref().copied());
                    match outcome {
                        Ok(()) => {
                            self.lanes.answered();
                            return Ok(body.freeze());
                        }
                        Err(fault) => fault,
                    }
                }
                Err(_) => out_of_time(),
            };
            if let Failure::Busy(_) = fault.failure {
                self.lanes.crowded();
            }
            if self.pinned.validator == Validator::None {
                // Nothing says that the rest would be of the same version.
                body.truncate(had);
            }
            if fault.kind == Kind::Changed {
                let error = error(&self.identity.location, &fault);
                return Err(self
                    .changed
                    .get_or_init(|| {
                        tracing::error!("{error}");
                        error
                    })
                    .clone());
            }
            if body.len() > had {
                tries.progressed();
            }
            tries.failed(fault).await.map_err(|fault| error(&self.identity.location, &fault))?;
        }
    }
}

/// The request that opens an object.
async fn first(endpoint: &Endpoint, head: &mut BytesMut) -> Result<Part, Fault> {
    let answer = endpoint.get(&(0..HEAD), HeaderMap::new()).await?;
    let part = answer::first(answer.status(), answer.headers(), &(0..HEAD))?;
    receive(answer, &part, head).await?;
    Ok(part)
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
            Ok(None) if left == 0 => return Ok(()),
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

/// The innermost cause of an error, which says what happened; the outer ones repeat the URL or say little.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
