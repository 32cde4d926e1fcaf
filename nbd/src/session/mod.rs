//! The transmission phase without I/O: bytes in, requests out.
//!
//! The answers need no state beyond [`Terms`]; see [`wire`](crate::wire) for their bytes.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions
    )
)]

use crate::Errno;
use crate::validate::{Terms, validate};
use crate::wire::consts::{CommandFlags, EXTENDED_REQUEST_LEN, Headers, MAX_PAYLOAD, REQUEST_LEN};
use crate::wire::{Command, Malformed, Request};
use bytes::{Buf, BytesMut};

/// What the bytes received so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Not enough for another request.
    More,
    /// To be executed and answered. It is valid.
    Request(Request),
    /// To be answered with an error. Its payload, if it has one, is dropped as it comes.
    Refused(Request, Errno),
    /// The client wants no more: answer what is under way, then close. Nothing after it is looked at.
    Disconnect,
    /// Out of step: close.
    Malformed(Malformed),
    /// A payload so long that skipping it is not worth the while: close.
    TooLong(Request),
}

/// The reading half of one connection.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    /// Bytes of a refused request's payload that are still to come.
    skip: u64,
    ended: bool,
}

impl Session {
    /// A session under what was negotiated.
    pub const fn new(terms: Terms) -> Self {
        Self { terms, skip: 0, ended: false }
    }

    /// What was negotiated.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether what comes next begins a request.
    pub const fn between_requests(&self) -> bool {
        self.skip == 0 && !self.ended
    }

    /// Takes the next request off `input`. Call again until it answers [`Event::More`]; then append bytes to `input`.
    /// After an event that ends the session, bytes are dropped and the answer is always `More`.
    pub fn receive(&mut self, input: &mut BytesMut) -> Event {
        if self.ended {
            input.clear();
            return Event::More;
        }
        if self.skip > 0 {
            let here = usize::try_from(self.skip).map_or(input.len(), |skip| skip.min(input.len()));
            input.advance(here);
            self.skip = u64::try_from(here).map_or(0, |here| self.skip.saturating_sub(here));
            if self.skip > 0 {
                return Event::More;
            }
        }
        let (decoded, len) = if self.terms.headers == Headers::Extended {
            let Some(header) = input.first_chunk::<EXTENDED_REQUEST_LEN>() else { return Event::More };
            (Request::decode_extended(header), EXTENDED_REQUEST_LEN)
        } else {
            let Some(header) = input.first_chunk::<REQUEST_LEN>() else { return Event::More };
            (Request::decode(header), REQUEST_LEN)
        };
        let request = match decoded {
            Ok(request) => request,
            Err(malformed) => return self.end(Event::Malformed(malformed)),
        };
        input.advance(len);
        let payload = self.payload(&request);
        if payload > u64::from(MAX_PAYLOAD) {
            return self.end(Event::TooLong(request));
        }
        self.skip = payload;
        match validate(&self.terms, &request) {
            _ if request.command == Command::Disconnect => self.end(Event::Disconnect),
            Ok(()) => Event::Request(request),
            Err(errno) => Event::Refused(request, errno),
        }
    }

    /// How many bytes follow the header.
    fn payload(&self, request: &Request) -> u64 {
        let has = match self.terms.headers {
            Headers::Extended => request.flags.contains(CommandFlags::PAYLOAD_LEN),
            Headers::Simple | Headers::Structured => request.command == Command::Write,
        };
        if has { request.length } else { 0 }
    }

    const fn end(&mut self, event: Event) -> Event {
        self.ended = true;
        event
    }
}

#[cfg(test)]
mod tests;
