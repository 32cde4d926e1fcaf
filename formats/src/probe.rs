//! Which format a file has, from the bytes that the formats put there for this purpose.
//!
//! Every signature is looked for, not only the first that fits: a disk stored raw, or as a fixed vhd, begins with
//! whatever its guest wrote there, and a guest must not be able to choose how its disk is read. Two signatures are
//! an error that names both.

use crate::known::{Step, Stop, View};
use crate::{FileIndex, Format, FormatError, Opened, Options, qcow, qcow2, raw, vhd, vhdx, vmdk};

/// The file that is opened.
pub(crate) const IMAGE: FileIndex = FileIndex(0);

/// How much of the file's beginning is read at once: enough for the header, and in most images for the first tables.
pub(crate) const HEAD: u64 = 64 << 10;

/// Opens the image as the format that was asked for, or that its signature says.
pub(crate) fn open(view: View<'_>, options: &Options) -> Step<Opened> {
    let format = match options.format {
        Some(format) => format,
        None => probe(view)?,
    };
    match format {
        Format::Raw => Ok(raw::open(view)),
        Format::Qcow => qcow::open(view),
        Format::Qcow2 => qcow2::open(view, options),
        Format::Vhd => vhd::open(view),
        Format::Vmdk => vmdk::open(view),
        Format::Vhdx => vhdx::open(view),
    }
}

/// What a signature stands for.
#[derive(Clone, Copy)]
enum Found {
    Known(Format),
    Foreign { what: &'static str, way_out: &'static str },
}

impl Found {
    fn name(self) -> &'static str {
        match self {
            Found::Known(format) => format.name(),
            Found::Foreign { what, .. } => what,
        }
    }
}

/// The one format whose signature is in the file; raw if there is none.
fn probe(view: View<'_>) -> Step<Format> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    let found = at_head(head);
    let vhd = match vhd::probe(view)? {
        vhd::Signature::None => None,
        vhd::Signature::Contradiction => {
            return Err(ambiguous("the vhd of its footer", "the vhd of its footer's copy at the front"));
        }
        // Without a valid footer, the cookie is worth no more than any other format's signature.
        vhd::Signature::Cookie | vhd::Signature::End | vhd::Signature::Front => {
            Some(Found::Known(Format::Vhd))
        }
    };
    match found.into_iter().chain(vhd).collect::<Vec<_>>().as_slice() {
        [] => Ok(Format::Raw),
        [Found::Known(format)] => Ok(*format),
        [Found::Foreign { what, way_out }] => Err(FormatError::Foreign { what, way_out }.into()),
        [first, second, ..] => Err(ambiguous(first.name(), second.name())),
    }
}

fn ambiguous(first: &'static str, second: &'static str) -> Stop {
    FormatError::Ambiguous { first, second }.into()
}

const CONVERT: &str = "convert it with qemu-img convert first";
const UNPACK: &str = "unpack it first, or convert it to a compressed qcow2, which can be read at any offset";

/// Signatures at fixed places near the beginning.
fn at_head(head: &[u8]) -> Option<Found> {
    let is = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if is(0, b"QFI\xfb") {
        let first = head.get(4..8) == Some(&[0, 0, 0, 1]);
        return Some(Found::Known(if first { Format::Qcow } else { Format::Qcow2 }));
    }
    if vmdk::is_vmdk(head) {
        return Some(Found::Known(Format::Vmdk));
    }
    if is(0, b"vhdxfile") {
        return Some(Found::Known(Format::Vhdx));
    }
    let foreign: [(usize, &[u8], &str, &str); 17] = [
        (0, b"QED\0", "a QED image", CONVERT),
        (64, b"\x7f\x10\xda\xbe", "a VirtualBox VDI image", CONVERT),
        (0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
        (0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
        (0, b"Bochs Virtual HD Image", "a Bochs image", CONVERT),
        (0, b"#!/bin/sh\n#V2.0 Format", "a cloop image", CONVERT),
        (0, b"EVF\x09\x0d\x0a\xff\0", "an EWF (EnCase) image", CONVERT),
        (0, b"MSWIM\0\0\0", "a WIM image", "it holds files, not a disk"),
        (0, b"\x1f\x8b\x08", "a gzip file", UNPACK),
        (0, b"\xfd7zXZ\0", "an xz file", UNPACK),
        (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", UNPACK),
        (0, b"BZh", "a bzip2 file", UNPACK),
        (0, b"\x04\x22\x4d\x18", "an LZ4 file", UNPACK),
        (0, b"LZIP\x01", "an lzip file", UNPACK),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
        (0, b"PK\x03\x04", "a zip archive", UNPACK),
        (257, b"ustar", "a tar archive", UNPACK),
    ];
    let found = foreign.iter().find(|(at, magic, ..)| is(*at, magic))?;
    Some(Found::Foreign { what: found.2, way_out: found.3 })
}
