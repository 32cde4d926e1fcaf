//! HTTP, HTTPS and S3: exact ranges of an object that is pinned at open.
//!
//! The first answer says how large the object is and which version it is. Every later request carries that version
//! as a precondition, and every answer is checked in [`answer`] before its body is read: what servers, proxies and
//! caches get wrong becomes another try or an error, never bytes. A body that breaks off is continued where it ended,
//! under the same precondition.

mod answer;
mod auth;
mod checksum;
mod circuit;
mod client;
mod endpoint;
mod hand;
mod lanes;
#[cfg(feature = "s3")]
mod listing;
mod pace;
#[cfg(feature = "s3")]
mod s3;
mod way;

pub(crate) use circuit::Circuits;
pub(crate) use client::Clients;
pub use client::install_crypto;
#[cfg(feature = "s3")]
pub use listing::{Entry, list};

use crate::retry::Policy;
use crate::tries::{Fault, Tries, error};
use crate::{Error, Identity, Kind, Location, Options, Scheme, Source};
use answer::{Pinned, Validator};
use bytes::{Bytes, BytesMut};
use hand::AtHand;
use std::ops::Range;
use std::sync::OnceLock;
use tokio::time::Instant;
use way::Way;

/// An object on an HTTP or S3 server.
#[derive(Debug)]
pub struct HttpSource {
    identity: Identity,
    pinned: Pinned,
    /// The server that the location names, and its mirrors. Never empty.
    ways: Vec<Way>,
    /// The way whose answer was pinned.
    pinned_by: usize,
    policy: Policy,
    at_hand: AtHand,
    /// Set for good when another version is seen.
    changed: OnceLock<Error>,
}

impl HttpSource {
    /// Opens the object at `location`, or a mirror of it, with one request for its first bytes, and pins what the answer
    /// says. With [`Options::with_ends`], a request for the last ones is sent at the same time; what becomes of that has no
    /// part in whether the object opens.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        if location.scheme() == Scheme::S3 && location.file_name().is_empty() {
            return Err(Error::new(
                Kind::Location,
                format!("{location}: no key of an object after the bucket"),
            ));
        }
        let mut ways = vec![Way::new(options, location)?];
        for mirror in options.credentials.mirrors(location)? {
            ways.push(Way::new(options, &mirror)?);
        }
        let policy = options.policy;
        let mut tries = Tries::new(policy.opening());
        let share = policy.opening().deadline / u32::try_from(ways.len()).unwrap_or(u32::MAX);
        let mut ends = options.ends && !options.known;
        let (pinned_by, opened) = 'opened: loop {
            let mut fault = tries.out_of_time();
            for (number, way) in ways.iter().enumerate() {
                let deadline = tries.deadline().min(Instant::now() + share);
                fault = match way.open(ends, deadline, &tries).await {
                    Ok(opened) => break 'opened (number, opened),
                    Err(fault) => fault,
                };
            }
            // A server that is asked again is not to be asked for more than has to be.
            ends = false;
            tries.failed(fault).await.map_err(|fault| error(location, &fault))?;
        };
        let pinned = opened.pinned;
        if pinned.validator == Validator::None {
            tracing::warn!(%location, "the server gives the object neither a strong ETag nor Last-Modified: changes cannot be noticed, and nothing is kept after it is closed");
            // Nothing says that another server holds the same.
            let others = ways.iter().enumerate().filter(|(number, _)| *number != pinned_by);
            others.for_each(|(_, way)| way.take_out());
        }
        Ok(HttpSource {
            identity: Identity {
                location: ways[0].endpoint.canonical(),
                size: pinned.size,
                validator: pinned.validator.text(),
            },
            at_hand: AtHand::new(opened.first, opened.last, pinned.size),
            pinned,
            ways,
            pinned_by,
            policy,
            changed: OnceLock::new(),
        })
    }

    /// Notes for good that the object changed.
    fn latch(&self, fault: &Fault) -> Error {
        self.changed.get_or_init(|| error(&self.identity.location, fault)).clone()
    }

    /// The ways to be tried: those to servers that can be reached; if there is none, all that are left.
    fn ways(&self) -> Vec<(usize, &Way)> {
        let mut ways: Vec<_> = self.ways.iter().enumerate().filter(|(_, way)| !way.is_out()).collect();
        if ways.len() > 1 && ways.iter().any(|(_, way)| way.is_clear()) {
            ways.retain(|(_, way)| way.is_clear());
        }
        ways
    }

    /// The error of a change that was seen, if one was. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        self.changed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// How many of the first bytes are at hand, because opening brought them along.
    pub fn at_hand(&self) -> u64 {
        self.at_hand.first()
    }

    /// Lets go of what opening brought along, but for the first `len` bytes.
    pub fn keep_at_hand(&self, len: u64) {
        self.at_hand.keep_first(len);
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
        if let Some(bytes) = self.at_hand.get(&range) {
            return Ok(bytes);
        }
        let mut tries = Tries::new(self.policy);
        let mut body = BytesMut::with_capacity(len);
        loop {
            let mut last = tries.out_of_time();
            let before = body.len();
            for (number, way) in self.ways() {
                let had = body.len();
                let rest = range.start + had as u64..range.end;
                let fault = match way.read(rest, &mut body, &self.pinned, &tries).await {
                    Ok(()) => return Ok(body.freeze()),
                    Err(fault) => fault,
                };
                if self.pinned.validator == Validator::None {
                    // Nothing says that the rest would be of the same version.
                    body.truncate(had);
                }
                if fault.kind == Kind::Changed {
                    if number == self.pinned_by {
                        return Err(self.latch(&fault));
                    }
                    tracing::warn!("{}: {}; it is not asked any more", way.endpoint.canonical(), fault.what);
                    way.take_out();
                    continue;
                }
                last = fault;
            }
            if body.len() > before {
                tries.progressed();
            }
            tries.failed(last).await.map_err(|fault| error(&self.identity.location, &fault))?;
        }
    }
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
