//! The NBD protocol: a sans-I/O codec and state machines, a read-only server, and the Linux kernel client.
//!
//! Names and numbers are those of the protocol document (`doc/proto.md` of NetworkBlockDevice/nbd).

mod export;

pub use export::{Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Segment, Segments};
