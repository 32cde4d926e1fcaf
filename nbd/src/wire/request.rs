//! Requests of the transmission phase.
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

use super::Cursor;
use super::consts::{CommandFlags, EXTENDED_REQUEST_LEN, EXTENDED_REQUEST_MAGIC, REQUEST_LEN, REQUEST_MAGIC};

/// A client's own name for a request, handed back with every reply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read,
    /// `NBD_CMD_WRITE`.
    Write,
    /// `NBD_CMD_DISC`.
    Disconnect,
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim,
    /// `NBD_CMD_CACHE`.
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus,
    /// `NBD_CMD_RESIZE`.
    Resize,
    /// Any other number.
    Unknown(u16),
}

impl Command {
    pub(super) const fn of(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            other => Self::Unknown(other),
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Resize => 8,
            Self::Unknown(other) => other,
        }
    }
}

/// The bytes are no request: the client and the server are out of step, and the connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request must begin with the magic number, not with 0x{0:08x}")]
pub struct Malformed(pub u32);

/// A request as sent: nothing in it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its flags, unknown ones included.
    pub flags: CommandFlags,
    /// What it asks for.
    pub command: Command,
    /// Its name.
    pub cookie: Cookie,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes; with `NBD_CMD_FLAG_PAYLOAD_LEN` those of the payload.
    pub length: u64,
}

impl Request {
    /// Reads a request with the usual 28-byte header.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(bytes);
        let request = Self::front(&mut cursor, REQUEST_MAGIC)?;
        Ok(Self { length: cursor.u32().unwrap_or_default().into(), ..request })
    }

    /// Reads a request with the 32-byte extended header.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_LEN]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(bytes);
        let request = Self::front(&mut cursor, EXTENDED_REQUEST_MAGIC)?;
        Ok(Self { length: cursor.u64().unwrap_or_default(), ..request })
    }

    /// What both headers begin with. The bytes are long enough, so that no default is ever used.
    fn front(cursor: &mut Cursor<'_>, magic: u32) -> Result<Self, Malformed> {
        let found = cursor.u32().unwrap_or_default();
        if found != magic {
            return Err(Malformed(found));
        }
        Ok(Self {
            flags: CommandFlags::from_bits_retain(cursor.u16().unwrap_or_default()),
            command: Command::of(cursor.u16().unwrap_or_default()),
            cookie: Cookie(cursor.u64().unwrap_or_default()),
            offset: cursor.u64().unwrap_or_default(),
            length: 0,
        })
    }

    /// Appends the usual header. A length beyond 32 bits does not fit, and only its low half is written.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.put(REQUEST_MAGIC, out);
        let [_, _, _, _, low @ ..] = self.length.to_be_bytes();
        out.extend_from_slice(&low);
    }

    /// Appends the extended header.
    pub fn encode_extended(&self, out: &mut Vec<u8>) {
        self.put(EXTENDED_REQUEST_MAGIC, out);
        out.extend_from_slice(&self.length.to_be_bytes());
    }

    fn put(&self, magic: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.bits().to_be_bytes());
        out.extend_from_slice(&self.command.number().to_be_bytes());
        out.extend_from_slice(&self.cookie.0.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
    }
}
