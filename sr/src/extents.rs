//! What ranges of a VDI hold, and where from: the composition of a thin device and what shows through it.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A range of a disk with one status; the fields are those of `qemu-img map --output=json`, and mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length, in bytes; not 0.
    pub length: u64,
    /// Which layer decides the content: 0 is the disk itself, 1 its template's image, 2 that image's parent, and so on.
    /// Of a template, 0 is the image.
    pub depth: usize,
    /// Whether any layer holds it.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it has to be read to know its content.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
}

impl Extent {
    /// What the disk holds itself.
    pub(crate) fn own(range: Range<u64>) -> Self {
        let length = range.end - range.start;
        Self {
            start: range.start,
            length,
            depth: 0,
            present: true,
            zero: false,
            data: true,
            compressed: false,
        }
    }

    /// What nothing holds.
    fn hole(range: Range<u64>) -> Self {
        Self { present: false, zero: true, data: false, ..Self::own(range) }
    }

    fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// A range in which two disks may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// First byte.
    pub start: u64,
    /// Length, in bytes; not 0.
    pub length: u64,
}

/// What a thin disk of `size` bytes holds that has the ranges in `mapped` itself, and elsewhere shows `origin`: the
/// extents of its template, from 0 on without gaps. Both are in order. What is beyond the template's end is a hole.
pub(crate) fn compose(size: u64, mapped: &[Range<u64>], origin: &[Extent]) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut at = 0;
    for range in clipped(mapped, size) {
        show_through(at..range.start, origin, &mut extents);
        at = range.end;
        push(&mut extents, Extent::own(range));
    }
    show_through(at..size, origin, &mut extents);
    extents
}

/// Adds what `range` shows of the origin.
fn show_through(range: Range<u64>, origin: &[Extent], extents: &mut Vec<Extent>) {
    let mut at = range.start;
    let first = origin.partition_point(|extent| extent.end() <= range.start);
    for extent in origin[first..].iter().take_while(|extent| extent.start < range.end) {
        let end = extent.end().min(range.end);
        if at < end {
            push(extents, Extent { start: at, length: end - at, depth: extent.depth + 1, ..*extent });
            at = end;
        }
    }
    if at < range.end {
        push(extents, Extent::hole(at..range.end));
    }
}

/// Adds an extent that begins where the last one ends.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if (Extent { start: last.start, length: last.length, ..extent }) == *last => {
            last.length += extent.length;
        }
        _ => extents.push(extent),
    }
}

/// The ranges as far as they lie below `size`.
pub(crate) fn clipped(ranges: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().map(move |range| range.start..range.end.min(size)).filter(|range| range.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: [Extent; 3] = [
        Extent { start: 0, length: 100, depth: 0, present: true, zero: false, data: true, compressed: true },
        Extent {
            start: 100,
            length: 100,
            depth: 1,
            present: false,
            zero: true,
            data: false,
            compressed: false,
        },
        Extent {
            start: 200,
            length: 50,
            depth: 1,
            present: true,
            zero: false,
            data: true,
            compressed: false,
        },
    ];

    fn short(extents: &[Extent]) -> Vec<(u64, u64, usize, &'static str)> {
        let word = |extent: &Extent| match (extent.present, extent.data, extent.compressed) {
            (false, false, _) => "hole",
            (true, true, true) => "packed",
            (true, true, false) => "data",
            _ => "?",
        };
        extents.iter().map(|extent| (extent.start, extent.length, extent.depth, word(extent))).collect()
    }

    #[test]
    fn what_is_mapped_hides_the_template() {
        let got = compose(400, &[10..20, 90..110, 240..260, 390..500], &IMAGE);
        let wanted = [
            (0, 10, 1, "packed"),
            (10, 10, 0, "data"),
            (20, 70, 1, "packed"),
            (90, 20, 0, "data"),
            (110, 90, 2, "hole"),
            (200, 40, 2, "data"),
            (240, 20, 0, "data"),
            (260, 130, 0, "hole"),
            (390, 10, 0, "data"),
        ];
        assert_eq!(short(&got), wanted);
    }

    #[test]
    fn a_disk_without_a_template_is_data_and_holes() {
        assert_eq!(short(&compose(100, &[], &[])), [(0, 100, 0, "hole")]);
        assert_eq!(short(&compose(100, &[0..64, 64..128], &[])), [(0, 100, 0, "data")]);
        assert_eq!(compose(0, &[0..64, 128..192], &IMAGE), []);
        // A template that is longer is shown as far as the disk goes.
        assert_eq!(short(&compose(150, &[], &IMAGE)), [(0, 100, 1, "packed"), (100, 50, 2, "hole")]);
    }
}
