//! qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2).
//!
//! The L1 table is read at open; L2 tables are the leaves, read in slices so that a 2 MiB table costs no more at a
//! time than a small one. Refcounts, bitmaps and snapshots' tables are not needed to read and not looked at.

mod header;
mod snapshot;
mod table;

use crate::fields::be64s;
use crate::known::{Step, Table, View};
use crate::probe::IMAGE;
use crate::{
    Damage, Format, FormatError, Info, Layer, Located, Mapping, Opened, Options, ParentCheck, ParentRef,
    Result, Role, Run, Runs, TableRef, limits,
};
use header::Header;
use std::sync::Arc;
use table::{L1, Shape};

/// Most bytes of L2 table in one slice. An extended entry can become 32 runs, so that its slices are smaller.
const SLICE_BYTES: u64 = 64 << 10;
const EXTENDED_SLICE_BYTES: u64 = 16 << 10;

/// Opens a qcow2 image.
pub(crate) fn open(view: View<'_>, options: &Options) -> Step<Opened> {
    let mut header = header::read(view)?;
    if let Some(wanted) = &options.snapshot {
        let snapshot = snapshot::find(view, &header, wanted)?;
        (header.l1_offset, header.l1_size) = (snapshot.l1_offset, snapshot.l1_size);
        header.size = snapshot.size;
    }
    if u64::from(header.l1_size).saturating_mul(8) > limits::ROOT_BYTES.into() {
        let rule = "the L1 table would be more than 32 MiB";
        return Err(FormatError::Field { what: "qcow2 l1_size", value: header.l1_size.into(), rule }.into());
    }
    let covers = header.table_covers();
    let entries = header.size.div_ceil(covers);
    if u64::from(header.l1_size) < entries {
        let rule = "the L1 table is too small for the size of the disk";
        return Err(FormatError::Field { what: "qcow2 l1_size", value: header.l1_size.into(), rule }.into());
    }
    let l1 = view.table(IMAGE, header.l1_offset, entries.saturating_mul(8), "qcow2 L1 table")?;
    let data = match &header.data_file {
        Some(name) => view.file(name, Role::DataFile)?,
        None => IMAGE,
    };
    let l1_end = header.l1_offset.saturating_add(u64::from(header.l1_size).saturating_mul(8));
    let shape = Shape {
        cluster_bits: header.cluster_bits,
        cluster: header.cluster(),
        extended: header.extended_l2,
        zero_flag: header.version >= 3,
        codec: header.codec,
        data,
        external: header.data_file.is_some(),
        data_len: view.len(data),
        l1: (header.l1_offset, l1_end),
    };
    let parent = header.backing.as_ref().map(parent).transpose()?;
    let layer =
        Qcow2 { size: header.size, file_len: view.len(IMAGE), covers, l1, shape, info: info(&header) };
    Ok(Opened { layer: Arc::new(layer), parent, content_id: None })
}

/// What the image says of its backing file.
fn parent((name, format): &(String, Option<String>)) -> Result<ParentRef> {
    let format = match format.as_deref() {
        None => None,
        Some("raw" | "file" | "host_device") => Some(Format::Raw),
        Some("qcow") => Some(Format::Qcow),
        Some("qcow2") => Some(Format::Qcow2),
        Some("vpc") => Some(Format::Vhd),
        Some("vmdk") => Some(Format::Vmdk),
        Some("vhdx") => Some(Format::Vhdx),
        Some(_) => {
            let rule = "it is none of raw, qcow, qcow2, vpc, vmdk and vhdx";
            return Err(FormatError::Refused { what: "the qcow2 backing format", rule });
        }
    };
    Ok(ParentRef { names: vec![name.clone()], format, check: ParentCheck::None })
}

fn info(header: &Header) -> Info {
    let mut info = Info {
        cluster_size: Some(header.cluster()),
        compressed: header.data_file.is_none(),
        aligned_units: true,
        whole_clusters: !header.extended_l2,
        follows_file: false,
        features: vec![format!("v{}", header.version)],
        warnings: Vec::new(),
    };
    let named = [
        (header.codec == crate::Codec::Zstd, "zstd"),
        (header.extended_l2, "extended-l2"),
        (header.data_file.is_some(), "data-file"),
        (header.data_file_raw && header.data_file.is_some(), "data-file-raw"),
        (header.snapshots > 0, "internal-snapshots"),
        (header.bitmaps, "bitmaps"),
        (header.dirty, "dirty"),
        (header.corrupt, "corrupt"),
    ];
    info.features.extend(named.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned()));
    if header.dirty {
        info.warnings.push("the image was not closed cleanly: its refcounts may be stale".to_owned());
    }
    if header.corrupt {
        info.warnings.push("the image is marked corrupt".to_owned());
    }
    // A name that is a `json:` object may say it itself.
    if let Some((name, None)) = &header.backing
        && !name.starts_with("json:")
    {
        info.warnings.push("it does not say of what format its backing file is: that was probed".to_owned());
    }
    info
}

#[derive(Debug)]
struct Qcow2 {
    size: u64,
    file_len: u64,
    /// Guest bytes under one L1 entry.
    covers: u64,
    l1: Table,
    shape: Shape,
    info: Info,
}

impl Qcow2 {
    /// The L1 entry with this number; there is one for every offset inside the disk.
    fn l1(&self, number: u64) -> L1 {
        let entry = self.l1.entry(number).map_or(0, u64::from_be_bytes);
        self.shape.l1(entry, self.file_len)
    }

    /// The end of the run of empty L1 entries that begins with entry `number`.
    fn empty_until(&self, number: u64) -> u64 {
        let last = number.saturating_add(limits::MERGED_ENTRIES);
        let mut next = number.saturating_add(1);
        while next < last
            && next.saturating_mul(self.covers) < self.size
            && matches!(self.l1(next), L1::Empty)
        {
            next = next.saturating_add(1);
        }
        next.saturating_mul(self.covers).min(self.size)
    }
}

impl Layer for Qcow2 {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn locate(&self, at: u64) -> Result<Located> {
        if at >= self.size {
            return Err(FormatError::Outside { at });
        }
        let number = at.checked_div(self.covers).unwrap_or(0);
        let start = number.saturating_mul(self.covers);
        let run = |end: u64, mapping| Located::Run(Run { start, len: end.saturating_sub(start), mapping });
        let table = match self.l1(number) {
            L1::Empty => return Ok(run(self.empty_until(number), Mapping::Parent)),
            L1::Damaged(damage) => {
                let end = start.saturating_add(self.covers).min(self.size);
                return Ok(run(end, Mapping::Damaged(damage)));
            }
            L1::Table(table) => table,
        };
        let (entry, slice) = if self.shape.extended { (16, EXTENDED_SLICE_BYTES) } else { (8, SLICE_BYTES) };
        let len = slice.min(self.shape.cluster);
        let covers = len.checked_div(entry).unwrap_or(0).saturating_mul(self.shape.cluster).max(1);
        let skip = at.saturating_sub(start).checked_div(covers).unwrap_or(0);
        let start = start.saturating_add(skip.saturating_mul(covers));
        Ok(Located::Table(TableRef {
            file: IMAGE,
            at: table.saturating_add(skip.saturating_mul(len)),
            len: u32::try_from(len).unwrap_or(limits::LEAF_BYTES),
            start,
            covers: covers.min(self.size.saturating_sub(start)),
        }))
    }

    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs> {
        let mut runs = Runs::new();
        let end = table.start.saturating_add(table.covers);
        let cluster = self.shape.cluster;
        let own = table.at & !cluster.wrapping_sub(1);
        let mut guest = table.start;
        // Entries of a last, cut cluster speak for guest bytes past the end of the disk; those are dropped.
        let mut push = |run: Run| {
            let len = run.len.min(end.saturating_sub(run.start));
            let _contiguous = runs.push(Run { len, ..run });
        };
        if self.shape.extended {
            for pair in be64s(bytes).collect::<Vec<_>>().as_chunks::<2>().0 {
                if guest >= end {
                    break;
                }
                let [entry, bitmap] = *pair;
                self.shape.extended(entry, bitmap, guest, own, &mut push);
                guest = guest.saturating_add(cluster);
            }
        } else {
            for entry in be64s(bytes) {
                if guest >= end {
                    break;
                }
                push(Run { start: guest, len: cluster, mapping: self.shape.standard(entry, guest, own) });
                guest = guest.saturating_add(cluster);
            }
        }
        if guest < end {
            let mapping = Mapping::Damaged(Damage::TablePastEnd);
            push(Run { start: guest, len: end.saturating_sub(guest), mapping });
        }
        Ok(runs)
    }
}
