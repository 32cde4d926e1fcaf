//! A client that says exactly what it is told to, right or wrong.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) type Check = Result<(), Box<dyn Error>>;
/// A check's number and sentence, and what does it.
pub(crate) type Named = (&'static str, fn(&super::Target) -> Check);
pub(crate) type Answer<T> = Result<T, Box<dyn Error>>;

/// Fails the check with a sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+).into());
        }
    };
}
pub(crate) use ensure;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED: u32 = 8;
pub(crate) const LIST_META: u32 = 9;
pub(crate) const SET_META: u32 = 10;
pub(crate) const EXTENDED: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const META: u32 = 4;
pub(crate) const UNSUP: u32 = 0x8000_0001;
pub(crate) const POLICY: u32 = 0x8000_0002;
pub(crate) const INVALID: u32 = 0x8000_0003;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;
pub(crate) const TOO_BIG: u32 = 0x8000_0009;
pub(crate) const EXT_HEADER_REQD: u32 = 0x8000_000a;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EINVAL: u32 = 22;

/// How replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

/// All of the answer to one request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub cookie: u64,
    /// 0 is success.
    pub error: u32,
    /// Type and payload of each chunk; in a simple reply, none.
    pub chunks: Vec<(u16, Vec<u8>)>,
    /// Bytes of a READ.
    pub data: Vec<u8>,
}

pub(crate) struct Raw {
    socket: UnixStream,
    /// What the server said of itself in the greeting.
    pub(crate) flags: u16,
    pub(crate) mode: Mode,
    next: u64,
}

impl Raw {
    /// Connected, and the greeting checked.
    pub(crate) fn greeted(path: &Path) -> Answer<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut raw = Self { socket, flags: 0, mode: Mode::Simple, next: 1 };
        let greeting = raw.receive(16)?;
        ensure!(greeting == *b"NBDMAGICIHAVEOPT", "greeting {greeting:?}");
        raw.flags = u16::from_be_bytes(raw.number()?);
        Ok(raw)
    }

    /// In the middle of the negotiation.
    pub(crate) fn connect(path: &Path) -> Answer<Self> {
        let mut raw = Self::greeted(path)?;
        raw.send(&3_u32.to_be_bytes())?;
        Ok(raw)
    }

    /// In the middle of the negotiation, which has come to `mode`.
    pub(crate) fn with(path: &Path, mode: Mode) -> Answer<Self> {
        let mut raw = Self::connect(path)?;
        match mode {
            Mode::Simple => {}
            Mode::Structured => raw.expect(STRUCTURED, &[], ACK)?,
            Mode::Extended => raw.expect(EXTENDED, &[], ACK)?,
        }
        raw.mode = mode;
        Ok(raw)
    }

    /// In transmission with `mode` and the given contexts of the default export.
    pub(crate) fn transmit(path: &Path, mode: Mode, contexts: &[&str]) -> Answer<Self> {
        let mut raw = Self::with(path, mode)?;
        if !contexts.is_empty() {
            let replies = raw.option(SET_META, &meta("", contexts))?;
            ensure!(replies.len() == contexts.len() + 1, "contexts: {replies:?}");
        }
        raw.expect(GO, &info("", &[]), ACK)?;
        Ok(raw)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    pub(crate) fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Nothing but the end comes.
    pub(crate) fn closed(&mut self) -> Check {
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => ensure!(rest.is_empty(), "{} bytes instead of the end", rest.len()),
            Err(error) => ensure!(error.kind() == io::ErrorKind::ConnectionReset, "no end: {error}"),
        }
        Ok(())
    }

    /// Everything until the server closes; after an end of ours.
    pub(crate) fn rest(&mut self) -> Answer<Vec<u8>> {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest)?;
        Ok(rest)
    }

    pub(crate) fn put_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.send(&option_bytes(option, data))
    }

    /// The replies to `option`, of which the last is an acknowledgement or an error.
    pub(crate) fn replies(&mut self, option: u32) -> Answer<Vec<(u32, Vec<u8>)>> {
        let mut replies = Vec::new();
        loop {
            let magic = u64::from_be_bytes(self.number()?);
            ensure!(magic == 0x0003_e889_0455_65a9, "option reply magic {magic:#x}");
            let [of, kind, len] = [(); 3].map(|()| self.number().map(u32::from_be_bytes));
            let (of, kind, len) = (of?, kind?, len?);
            ensure!(of == option, "reply to option {of}, not {option}");
            let data = self.receive(len as usize)?;
            replies.push((kind, data));
            if kind == ACK || kind >= 0x8000_0000 {
                return Ok(replies);
            }
        }
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Answer<Vec<(u32, Vec<u8>)>> {
        self.put_option(option, data)?;
        self.replies(option)
    }

    /// The last reply to `option`.
    pub(crate) fn verdict(&mut self, option: u32, data: &[u8]) -> Answer<u32> {
        Ok(self.option(option, data)?.last().map_or(0, |(kind, _)| *kind))
    }

    pub(crate) fn expect(&mut self, option: u32, data: &[u8], verdict: u32) -> Check {
        let found = self.verdict(option, data)?;
        ensure!(found == verdict, "option {option}: {found:#x} instead of {verdict:#x}");
        Ok(())
    }

    /// The negotiation goes on as if nothing had been.
    pub(crate) fn in_sync(&mut self) -> Check {
        self.expect(INFO, &info("", &[]), ACK)
    }

    /// Sends a request and answers its cookie.
    pub(crate) fn put_request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> io::Result<u64> {
        let cookie = self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.next += 1;
        let bytes = request_bytes(self.mode, command, flags, cookie, offset, length);
        self.send(&bytes)?;
        Ok(cookie)
    }

    /// One whole reply. `lengths` tells how many bytes a READ with that cookie asked for.
    pub(crate) fn reply(
        &mut self,
        length: impl Fn(u64) -> usize,
        offset: impl Fn(u64) -> u64,
    ) -> Answer<Reply> {
        let mut reply = Reply::default();
        let mut covered = 0;
        loop {
            let magic = u32::from_be_bytes(self.number()?);
            // With structured replies, only READ needs them.
            let may_be_simple = self.mode == Mode::Structured && reply.chunks.is_empty();
            if self.mode == Mode::Simple || (may_be_simple && magic == 0x6744_6698) {
                ensure!(magic == 0x6744_6698, "simple reply magic {magic:#x}");
                reply.error = u32::from_be_bytes(self.number()?);
                reply.cookie = u64::from_be_bytes(self.number()?);
                let wanted = length(reply.cookie);
                ensure!(self.mode == Mode::Simple || wanted == 0, "a simple reply to READ");
                if reply.error == 0 {
                    reply.data = self.receive(wanted)?;
                }
                return Ok(reply);
            }
            let expected = if self.mode == Mode::Extended { 0x6e8a_278c } else { 0x668e_33ef };
            ensure!(magic == expected, "chunk magic {magic:#x}");
            let flags = u16::from_be_bytes(self.number()?);
            let kind = u16::from_be_bytes(self.number()?);
            let cookie = u64::from_be_bytes(self.number()?);
            ensure!(reply.cookie == 0 || reply.cookie == cookie, "chunks of two replies are mixed");
            reply.cookie = cookie;
            let len = if self.mode == Mode::Extended {
                let echoed = u64::from_be_bytes(self.number()?);
                ensure!(echoed == offset(cookie), "offset {echoed:#x} is not the request's");
                u64::from_be_bytes(self.number()?)
            } else {
                u32::from_be_bytes(self.number()?).into()
            };
            ensure!(len <= 33 << 20, "a chunk of {len} bytes");
            let payload = self.receive(len as usize)?;
            reply.data.resize(length(cookie), 0xee);
            match kind {
                1 | 2 => {
                    let at = u64::from_be_bytes(payload[..8].try_into()?) - offset(cookie);
                    let bytes = match kind {
                        1 => payload[8..].to_vec(),
                        _ => vec![0; u32::from_be_bytes(payload[8..12].try_into()?) as usize],
                    };
                    ensure!(!bytes.is_empty(), "an empty chunk");
                    covered += bytes.len();
                    let end = at as usize + bytes.len();
                    ensure!(end <= reply.data.len(), "a chunk beyond the request");
                    reply.data[at as usize..end].copy_from_slice(&bytes);
                }
                0x8000.. => {
                    let message = usize::from(u16::from_be_bytes(payload[4..6].try_into()?));
                    let whole = match kind {
                        0x8001 => payload.len() == message + 6,
                        0x8002 => payload.len() == message + 14,
                        _ => payload.len() >= message + 6,
                    };
                    ensure!(whole, "an error chunk of {len} bytes with {message} of text");
                    ensure!(std::str::from_utf8(&payload[6..6 + message]).is_ok(), "a text that is no UTF-8");
                    if kind == 0x8002 && length(cookie) > 0 {
                        let at = u64::from_be_bytes(payload[6 + message..].try_into()?);
                        let inside = (offset(cookie)..offset(cookie) + length(cookie) as u64).contains(&at);
                        ensure!(inside, "an error at {at:#x}, outside the request");
                    }
                    reply.error = u32::from_be_bytes(payload[..4].try_into()?);
                    ensure!(reply.error != 0, "an error chunk without an error");
                }
                _ => {}
            }
            reply.chunks.push((kind, payload));
            if flags & 1 == 1 {
                let whole = reply.error != 0 || covered == length(cookie) || covered == 0;
                ensure!(whole, "{covered} of {} bytes", length(cookie));
                return Ok(reply);
            }
        }
    }

    /// One request and its reply.
    pub(crate) fn request(&mut self, command: u16, flags: u16, offset: u64, length: u64) -> Answer<Reply> {
        let cookie = self.put_request(command, flags, offset, length)?;
        self.answer(command, cookie, offset, length)
    }

    /// The reply to a request sent already.
    pub(crate) fn answer(&mut self, command: u16, cookie: u64, offset: u64, length: u64) -> Answer<Reply> {
        let wanted = if command == READ { length as usize } else { 0 };
        let reply = self.reply(|_| wanted, |_| offset)?;
        ensure!(reply.cookie == cookie, "cookie {:#x} instead of {cookie:#x}", reply.cookie);
        Ok(reply)
    }

    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Answer<Vec<u8>> {
        let reply = self.request(READ, 0, offset, length)?;
        ensure!(reply.error == 0, "READ {length} at {offset:#x}: error {}", reply.error);
        Ok(reply.data)
    }

    /// The request fails with one of `errors`, and the connection lives.
    pub(crate) fn refused(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        errors: &[u32],
    ) -> Check {
        let error = self.request(command, flags, offset, length)?.error;
        ensure!(
            errors.contains(&error),
            "command {command} flags {flags:#x} {length} at {offset:#x}: error {error}"
        );
        self.alive()
    }

    pub(crate) fn alive(&mut self) -> Check {
        self.read(0, 1).map(drop)
    }
}

pub(crate) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len, data].concat()
}

pub(crate) fn request_bytes(
    mode: Mode,
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let magic: u32 = if mode == Mode::Extended { 0x21e4_1c71 } else { 0x2560_9513 };
    bytes.extend(magic.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    match mode {
        Mode::Extended => bytes.extend(length.to_be_bytes()),
        _ => bytes.extend((length as u32).to_be_bytes()),
    }
    bytes
}

pub(crate) fn counted(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text].concat()
}

/// Data of INFO and GO.
pub(crate) fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Data of LIST_META and SET_META.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query.as_bytes())));
    data
}
