//! Fixed newstyle negotiation without I/O: bytes in, bytes and steps out.
//!
//! The caller appends what it receives to `input`, calls [`Handshake::step`], does what the [`Step`] says, and sends
//! `out` before it waits for more. The machine keeps at most one option ([`MAX_OPTION`] bytes) and never more of it than
//! `input` holds.
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

mod option;

use crate::ExportInfo;
use crate::wire::Cursor;
use crate::wire::consts::*;
use bytes::{Buf, BufMut, BytesMut};
use option::{Info, MetaQuery, Wanted};

/// What the caller has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send `out`, receive more, call [`Handshake::step`].
    More,
    /// Look the export up and call [`Handshake::found`].
    Lookup(String),
    /// Call [`Handshake::listed`] with the names.
    List,
    /// Send `out`, drop the connection if `input` holds anything (it came in the clear), do the TLS handshake, call
    /// [`Handshake::encrypted`].
    StartTls,
    /// Send `out` and begin transmission of the export last looked up.
    Begin(Negotiated),
    /// Send `out` and close.
    Close,
}

/// What transmission begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Form of requests and replies.
    pub headers: Headers,
    /// Metadata contexts selected for the export.
    pub contexts: Contexts,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// No, and it cannot be.
    None,
    /// Not yet, and until it is nothing else is negotiated.
    Required,
    /// Yes.
    Done,
}

/// A question the caller has yet to answer.
#[derive(Debug)]
enum Pending {
    ExportName(String),
    Info { option: u32, info: Info },
    Meta { option: u32, query: MetaQuery },
    List,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Options,
    /// Dropping the data of an option, to answer it afterwards.
    Skip {
        option: u32,
        left: u32,
        reply: u32,
    },
    Closed,
}

/// One connection's negotiation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    flags: HandshakeFlags,
    encryption: Encryption,
    headers: Headers,
    contexts: Option<(String, Contexts)>,
    pending: Option<Pending>,
}

impl Handshake {
    /// Begins: appends the greeting to `out`.
    pub fn new(encryption: Encryption, out: &mut BytesMut) -> Self {
        out.put_u64(INIT_PASSWD);
        out.put_u64(OPTS_MAGIC);
        out.put_u16(HandshakeFlags::all().bits());
        Self {
            state: State::ClientFlags,
            flags: HandshakeFlags::empty(),
            encryption,
            headers: Headers::Simple,
            contexts: None,
            pending: None,
        }
    }

    /// Goes as far as `input` reaches.
    pub fn step(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Step {
        loop {
            match self.state {
                State::Closed => return Step::Close,
                State::ClientFlags => {
                    let Some(flags) = input.first_chunk().map(|b| u32::from_be_bytes(*b)) else {
                        return Step::More;
                    };
                    input.advance(4);
                    let Some(flags) = u16::try_from(flags).ok().and_then(HandshakeFlags::from_bits) else {
                        return self.close();
                    };
                    self.flags = flags;
                    self.state = State::Options;
                }
                State::Skip { option, ref mut left, reply } => {
                    let wanted = usize::try_from(*left).unwrap_or(usize::MAX);
                    let here = wanted.min(input.len());
                    input.advance(here);
                    *left = left.saturating_sub(u32::try_from(here).unwrap_or(u32::MAX));
                    if *left > 0 {
                        return Step::More;
                    }
                    put_reply(out, option, reply, &[]);
                    self.state = State::Options;
                }
                State::Options => {
                    let Some(header) = input.first_chunk::<OPTION_LEN>().copied() else { return Step::More };
                    let mut cursor = Cursor(&header);
                    let (Some(OPTS_MAGIC), Some(option), Some(len)) =
                        (cursor.u64(), cursor.u32(), cursor.u32())
                    else {
                        return self.close();
                    };
                    if let Some(reply) = self.refuses(option, len) {
                        // Without an error reply the only answer to a bad EXPORT_NAME is to hang up, and an old client
                        // would not understand one at all.
                        let mute =
                            option == OPT_EXPORT_NAME || !self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
                        if mute || len > MAX_OPTION_SKIP {
                            return self.close();
                        }
                        input.advance(OPTION_LEN);
                        self.state = State::Skip { option, left: len, reply };
                        continue;
                    }
                    let total = usize::try_from(len).unwrap_or(usize::MAX).saturating_add(OPTION_LEN);
                    if input.len() < total {
                        return Step::More;
                    }
                    let data = input.split_to(total).split_off(OPTION_LEN);
                    if let Some(step) = self.option(option, &data, out) {
                        return step;
                    }
                }
            }
        }
    }

    /// The error that `option` gets whatever its data are.
    fn refuses(&self, option: u32, len: u32) -> Option<u32> {
        if self.encryption == Encryption::Required && !matches!(option, OPT_STARTTLS | OPT_ABORT) {
            return Some(REP_ERR_TLS_REQD);
        }
        let known = matches!(
            option,
            OPT_EXPORT_NAME
                | OPT_ABORT
                | OPT_LIST
                | OPT_INFO
                | OPT_GO
                | OPT_STRUCTURED_REPLY
                | OPT_LIST_META_CONTEXT
                | OPT_SET_META_CONTEXT
                | OPT_EXTENDED_HEADERS
        ) || (option == OPT_STARTTLS && self.encryption != Encryption::None);
        if !known {
            return Some(REP_ERR_UNSUP);
        }
        let old = !self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        if old && !matches!(option, OPT_EXPORT_NAME | OPT_ABORT) {
            return Some(REP_ERR_UNSUP);
        }
        (len > MAX_OPTION).then_some(REP_ERR_TOO_BIG)
    }

    /// One whole option. `None`: go on with the next.
    fn option(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Option<Step> {
        match option {
            OPT_EXPORT_NAME => {
                // The answer has no room for what extended headers need said.
                let name = option::name(data).filter(|_| self.headers != Headers::Extended);
                let Some(name) = name else { return Some(self.close()) };
                self.pending = Some(Pending::ExportName(name.clone()));
                Some(Step::Lookup(name))
            }
            OPT_ABORT => {
                put_reply(out, option, REP_ACK, &[]);
                Some(self.close())
            }
            OPT_LIST => {
                if !data.is_empty() {
                    return invalid(out, option);
                }
                self.pending = Some(Pending::List);
                Some(Step::List)
            }
            OPT_STARTTLS => {
                if !data.is_empty() || self.encryption != Encryption::Required {
                    return invalid(out, option);
                }
                put_reply(out, option, REP_ACK, &[]);
                Some(Step::StartTls)
            }
            OPT_INFO | OPT_GO => {
                let Some(info) = Info::decode(data) else { return invalid(out, option) };
                let name = info.name.clone();
                self.pending = Some(Pending::Info { option, info });
                Some(Step::Lookup(name))
            }
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => {
                if !data.is_empty() {
                    return invalid(out, option);
                }
                if option == OPT_EXTENDED_HEADERS {
                    self.headers = Headers::Extended;
                } else if self.headers == Headers::Extended {
                    put_reply(out, option, REP_ERR_EXT_HEADER_REQD, &[]);
                    return None;
                } else {
                    self.headers = Headers::Structured;
                }
                put_reply(out, option, REP_ACK, &[]);
                None
            }
            _ => {
                if option == OPT_SET_META_CONTEXT {
                    // A new selection replaces the old one even if it fails.
                    self.contexts = None;
                }
                let query = MetaQuery::decode(data).filter(|_| self.headers != Headers::Simple);
                let Some(query) = query else { return invalid(out, option) };
                let name = query.name.clone();
                self.pending = Some(Pending::Meta { option, query });
                Some(Step::Lookup(name))
            }
        }
    }

    /// Answers [`Step::Lookup`]: what there is under the name, if anything.
    pub fn found(&mut self, export: Option<&ExportInfo>, input: &mut BytesMut, out: &mut BytesMut) -> Step {
        match (self.pending.take(), export) {
            (Some(Pending::ExportName(name)), Some(export)) => {
                out.put_u64(export.size);
                out.put_u16(self.transmission_flags().bits());
                if !self.flags.contains(HandshakeFlags::NO_ZEROES) {
                    out.put_bytes(0, 124);
                }
                return self.begin(&name);
            }
            (Some(Pending::Info { option, info }), Some(export)) => {
                self.put_info(option, &info, export, out);
                put_reply(out, option, REP_ACK, &[]);
                if option == OPT_GO {
                    return self.begin(&info.name);
                }
            }
            (Some(Pending::Meta { option, query }), Some(_)) => {
                let set = option == OPT_SET_META_CONTEXT;
                let contexts = query.select(set);
                for (context, name) in Contexts::NAMES {
                    if contexts.contains(context) {
                        // Ids mean nothing in a list.
                        let id = if set { context.bits() } else { 0 };
                        put_reply(out, option, REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
                    }
                }
                put_reply(out, option, REP_ACK, &[]);
                if set {
                    self.contexts = Some((query.name, contexts));
                }
            }
            (Some(Pending::Info { option, .. } | Pending::Meta { option, .. }), None) => {
                put_reply(out, option, REP_ERR_UNKNOWN, &[b"there is no such export"]);
            }
            (Some(Pending::ExportName(_)), None) | (Some(Pending::List) | None, _) => return self.close(),
        }
        self.step(input, out)
    }

    /// Answers [`Step::List`].
    pub fn listed(&mut self, names: &[String], input: &mut BytesMut, out: &mut BytesMut) -> Step {
        if !matches!(self.pending.take(), Some(Pending::List)) {
            return self.close();
        }
        for name in names {
            let Ok(len) = u32::try_from(name.len()) else { continue };
            if name.len() <= MAX_STRING {
                put_reply(out, OPT_LIST, REP_SERVER, &[&len.to_be_bytes(), name.as_bytes()]);
            }
        }
        put_reply(out, OPT_LIST, REP_ACK, &[]);
        self.step(input, out)
    }

    /// Goes on after [`Step::StartTls`]. Whatever was negotiated in the clear is forgotten.
    pub fn encrypted(&mut self) {
        self.encryption = Encryption::Done;
        self.headers = Headers::Simple;
        self.contexts = None;
    }

    /// Contexts count only for the export they were selected for.
    fn begin(&mut self, name: &str) -> Step {
        let selected = self.contexts.take().filter(|(of, _)| of == name);
        let contexts = selected.map(|(_, contexts)| contexts).unwrap_or_default();
        Step::Begin(Negotiated { headers: self.headers, contexts })
    }

    fn transmission_flags(&self) -> TransmissionFlags {
        match self.headers {
            Headers::Simple => TransmissionFlags::READ_ONLY_EXPORT,
            Headers::Structured | Headers::Extended => {
                TransmissionFlags::READ_ONLY_EXPORT | TransmissionFlags::SEND_DF
            }
        }
    }

    fn put_info(&self, option: u32, info: &Info, export: &ExportInfo, out: &mut BytesMut) {
        let flags = self.transmission_flags().bits().to_be_bytes();
        put_reply(out, option, REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &export.size.to_be_bytes(), &flags]);
        if info.wanted.contains(Wanted::NAME) {
            put_reply(out, option, REP_INFO, &[&INFO_NAME.to_be_bytes(), info.name.as_bytes()]);
        }
        if info.wanted.contains(Wanted::DESCRIPTION) && !export.description.is_empty() {
            let text = option::shorten(&export.description);
            put_reply(out, option, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), text.as_bytes()]);
        }
        if info.wanted.contains(Wanted::BLOCK_SIZE) {
            let [minimum, preferred] = [1, export.preferred_block].map(u32::to_be_bytes);
            let maximum = MAX_PAYLOAD.to_be_bytes();
            put_reply(
                out,
                option,
                REP_INFO,
                &[&INFO_BLOCK_SIZE.to_be_bytes(), &minimum, &preferred, &maximum],
            );
        }
    }

    const fn close(&mut self) -> Step {
        self.state = State::Closed;
        Step::Close
    }
}

fn invalid(out: &mut BytesMut, option: u32) -> Option<Step> {
    put_reply(out, option, REP_ERR_INVALID, &[b"the option's data make no sense here"]);
    None
}

/// Appends one reply whose data are `parts`. They are our own and short, so that their length fits.
fn put_reply(out: &mut BytesMut, option: u32, kind: u32, parts: &[&[u8]]) {
    let len = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    out.put_u64(REP_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    for part in parts {
        out.put_slice(part);
    }
}

#[cfg(test)]
mod tests;
