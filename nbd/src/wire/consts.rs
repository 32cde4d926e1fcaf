//! Numbers of the protocol document, under its names.

/// `NBDMAGIC`, the first eight bytes a server sends.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second eight bytes, and the first of every option a client sends.
pub const OPTS_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First bytes of every reply to an option.
pub const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First bytes of a request with extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First bytes of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First bytes of a reply chunk with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Length in bytes of a request header.
pub const REQUEST_LEN: usize = 28;
/// Length in bytes of an extended request header.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Length in bytes of an option header.
pub const OPTION_LEN: usize = 16;

/// The export to use, in old clients the last option.
pub const OPT_EXPORT_NAME: u32 = 1;
/// End the negotiation.
pub const OPT_ABORT: u32 = 2;
/// List the exports.
pub const OPT_LIST: u32 = 3;
/// Upgrade to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Tell about an export.
pub const OPT_INFO: u32 = 6;
/// Tell about an export and begin transmission.
pub const OPT_GO: u32 = 7;
/// Use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Select metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Use extended headers.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// The option is done.
pub const REP_ACK: u32 = 1;
/// One export of the list.
pub const REP_SERVER: u32 = 2;
/// One piece of information about an export.
pub const REP_INFO: u32 = 3;
/// One metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// The option is not known.
pub const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// The option's data make no sense.
pub const REP_ERR_INVALID: u32 = 0x8000_0003;
/// The option needs TLS.
pub const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
/// There is no such export.
pub const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
/// The option's data are too long.
pub const REP_ERR_TOO_BIG: u32 = 0x8000_0009;
/// The option makes no sense once extended headers are in use.
pub const REP_ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// Size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Canonical name.
pub const INFO_NAME: u16 = 1;
/// Description.
pub const INFO_DESCRIPTION: u16 = 2;
/// Block size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// The last chunk: no more of them for this cookie.
pub const REPLY_FLAG_DONE: u16 = 1;
/// A chunk of nothing.
pub const REPLY_TYPE_NONE: u16 = 0;
/// An offset and data.
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// An offset and the length of a hole.
pub const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Extents of one metadata context.
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Extents of one metadata context, 64 bits wide.
pub const REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
/// An error.
pub const REPLY_TYPE_ERROR: u16 = 0x8001;
/// An error, and where it is.
pub const REPLY_TYPE_ERROR_OFFSET: u16 = 0x8002;

/// Longest string: export names, descriptions, context names.
pub const MAX_STRING: usize = 4096;
/// Most bytes of payload in one request or reply; also the maximum block size we announce.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Most bytes of data of one option that are looked at.
pub const MAX_OPTION: u32 = 64 << 10;
/// Most bytes of data of one option that are skipped to stay in step with the client; with more it is dropped.
pub const MAX_OPTION_SKIP: u32 = 1 << 20;

bitflags::bitflags! {
    /// What a server says of itself, and a client in return, at the very beginning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// `NBD_FLAG_FIXED_NEWSTYLE`: options can fail without the connection failing.
        const FIXED_NEWSTYLE = 1;
        /// `NBD_FLAG_NO_ZEROES`: no padding after the answer to `NBD_OPT_EXPORT_NAME`.
        const NO_ZEROES = 2;
    }

    /// What a server says of an export.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// `NBD_FLAG_HAS_FLAGS`.
        const HAS_FLAGS = 1;
        /// `NBD_FLAG_READ_ONLY`.
        const READ_ONLY = 1 << 1;
        /// `NBD_FLAG_SEND_FLUSH`.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_FLAG_SEND_FUA`.
        const SEND_FUA = 1 << 3;
        /// `NBD_FLAG_SEND_DF`.
        const SEND_DF = 1 << 7;
        /// `NBD_FLAG_CAN_MULTI_CONN`.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_FLAG_SEND_CACHE`.
        const SEND_CACHE = 1 << 10;
    }

    /// Flags of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`.
        const FUA = 1;
        /// `NBD_CMD_FLAG_DF`: one chunk of data, not several.
        const DF = 1 << 2;
        /// `NBD_CMD_FLAG_REQ_ONE`: one extent per context.
        const REQ_ONE = 1 << 3;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length is that of a payload which follows.
        const PAYLOAD_LEN = 1 << 5;
        // The other bits are kept as they come: what they mean is for validation to say.
        const _ = !0;
    }

    /// Metadata contexts. The bit's value is the context's id on the wire.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Contexts: u32 {
        /// `base:allocation`.
        const ALLOCATION = 1;
        /// `qemu:allocation-depth`.
        const DEPTH = 2;
        /// `x-thinorigin:cached`: 1 where a read needs no server.
        const CACHED = 4;
    }
}

impl TransmissionFlags {
    /// Those of every export here.
    pub const READ_ONLY_EXPORT: Self = Self::HAS_FLAGS
        .union(Self::READ_ONLY)
        .union(Self::SEND_FLUSH)
        .union(Self::SEND_FUA)
        .union(Self::CAN_MULTI_CONN)
        .union(Self::SEND_CACHE);
}

impl Contexts {
    /// Every context with its name.
    pub const NAMES: [(Self, &str); 3] = [
        (Self::ALLOCATION, "base:allocation"),
        (Self::DEPTH, "qemu:allocation-depth"),
        (Self::CACHED, "x-thinorigin:cached"),
    ];
}

/// How requests and replies look once negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Headers {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers both ways.
    Extended,
}
