//! vmdk (VMware Virtual Disk Format 1.1): a disk as a row of extents, each in a file of its own or all in one.
//!
//! Size of the disk: an extent is as long as its line in the descriptor says, but the last one as long as its own
//! header says. VirtualBox rounds the latter up to whole grains, and qemu presents the disk that way.

mod descriptor;
mod esx;
mod hosted;
mod sparse;

use crate::known::{Step, Stop, View};
use crate::probe::{HEAD, IMAGE};
use crate::{
    Damage, FileIndex, Format, FormatError, Info, Layer, Located, Mapping, Opened, ParentCheck, ParentRef,
    Result, Role, Run, Runs, TableRef, limits,
};
use descriptor::{Descriptor, Kind, Line};
use sparse::{SECTOR, Sparse, Stored};
use std::sync::Arc;

/// Whether the file begins like any of the vmdk's files that can be opened.
pub(crate) fn is_vmdk(head: &[u8]) -> bool {
    let magics = [hosted::MAGIC, esx::COWD, esx::SESPARSE];
    magics.iter().any(|magic| head.starts_with(magic)) || descriptor::is_descriptor(head)
}

/// Opens a vmdk by its descriptor or, where that is embedded or missing, by its only extent.
pub(crate) fn open(view: View<'_>) -> Step<Opened> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    let mut info = Info::default();
    if head.starts_with(hosted::MAGIC) {
        return open_hosted(view, info);
    }
    if head.starts_with(esx::COWD) || head.starts_with(esx::SESPARSE) {
        let sparse = match head.starts_with(esx::COWD) {
            true => esx::open_cowd(view, IMAGE)?,
            false => esx::open_sesparse(view, IMAGE)?,
        };
        let alone =
            "the file is an extent without its descriptor: whether it is all of a disk nothing in it shows";
        info.warnings.push(alone.to_owned());
        return single(sparse, None, info);
    }
    if !descriptor::is_descriptor(head) {
        return Err(FormatError::Signature { format: Format::Vmdk }.into());
    }
    let len = view.len(IMAGE);
    if len > limits::DESCRIPTOR_BYTES {
        let limit = limits::DESCRIPTOR_BYTES;
        return Err(FormatError::TooLarge { what: "the vmdk descriptor", value: len, limit }.into());
    }
    let descriptor = descriptor::parse(view.upto(IMAGE, 0, len)?)?;
    described(view, &descriptor, info)
}

/// Opens a file with a hosted sparse header.
fn open_hosted(view: View<'_>, mut info: Info) -> Step<Opened> {
    let header = hosted::Header::read(view, IMAGE)?;
    let (at, len) = header.descriptor;
    let mut descriptor = None;
    if at != 0 && len != 0 {
        let limit = limits::DESCRIPTOR_BYTES;
        if len > limit {
            return Err(
                FormatError::TooLarge { what: "the embedded vmdk descriptor", value: len, limit }.into()
            );
        }
        let text = view.exact(IMAGE, at, len, "embedded vmdk descriptor")?;
        // Extents of a split disk reserve the room and leave it empty.
        if text.first().is_some_and(|&byte| byte != 0) {
            descriptor = Some(descriptor::parse(text)?);
        }
    }
    match descriptor {
        Some(descriptor) if header.capacity == 0 => described(view, &descriptor, info),
        Some(descriptor) if descriptor.extents.len() > 1 => {
            let rule = "it lists several extents, but the file is one of them";
            Err(FormatError::Refused { what: "the embedded vmdk descriptor", rule }.into())
        }
        Some(descriptor) => {
            info.compressed = header.stored != Stored::Plain;
            let sparse = hosted::open(view, IMAGE, &header, &mut info.warnings)?;
            single(sparse, Some(&descriptor), info)
        }
        None => {
            let rule =
                "it is an extent without a descriptor, which can be a part of a disk: open the descriptor";
            Err(FormatError::Refused { what: "the vmdk file", rule }.into())
        }
    }
}

/// A disk that is one sparse extent.
fn single(sparse: Sparse, descriptor: Option<&Descriptor>, info: Info) -> Step<Opened> {
    let extent = Extent { start: 0, len: sparse.capacity, body: Body::Sparse(sparse) };
    finish(vec![extent], descriptor, info)
}

/// A disk whose extents a descriptor lists.
fn described(view: View<'_>, descriptor: &Descriptor, mut info: Info) -> Step<Opened> {
    let mut extents = Vec::with_capacity(descriptor.extents.len());
    let mut start = 0u64;
    if descriptor.extents.is_empty() {
        return Err(FormatError::Refused { what: "the vmdk descriptor", rule: "it lists no extents" }.into());
    }
    let last = descriptor.extents.len().saturating_sub(1);
    let mut missing = false;
    for (number, line) in descriptor.extents.iter().enumerate() {
        let declared = line.sectors.checked_mul(SECTOR).filter(|&len| len > 0);
        let what = "the sectors of a vmdk extent";
        let rule = "they must be more than 0 and less than 2^63 bytes, also all extents together";
        let wrong = FormatError::Field { what, value: line.sectors, rule };
        let declared = declared.ok_or(wrong)?;
        let (body, len) = match body(view, line, declared, number == last, &mut info) {
            Ok(body) => body,
            // What the other extents need is asked for in one go: there may be a thousand of them.
            Err(Stop::Need) => {
                missing = true;
                continue;
            }
            Err(failed) => return Err(failed),
        };
        let end = start.checked_add(len).filter(|&end| end <= i64::MAX.unsigned_abs()).ok_or(wrong)?;
        extents.push(Extent { start, len, body });
        start = end;
    }
    if missing {
        return Err(Stop::Need);
    }
    finish(extents, Some(descriptor), info)
}

/// Opens an extent's file; returns also the extent's length.
fn body(view: View<'_>, line: &Line, declared: u64, last: bool, info: &mut Info) -> Step<(Body, u64)> {
    if !line.accessible {
        return Ok((Body::NoAccess, declared));
    }
    let sparse = match &line.kind {
        Kind::Zero => return Ok((Body::Zero, declared)),
        Kind::Flat { name, sector } => {
            let file = extent_file(view, name)?;
            let at = sector.checked_mul(SECTOR).unwrap_or(u64::MAX);
            let (what, file_len) = ("flat vmdk extent", view.len(file));
            if at.checked_add(declared).is_none_or(|end| end > file_len) {
                return Err(FormatError::Truncated { what, at, len: declared, file_len }.into());
            }
            return Ok((Body::Flat { file, at }, declared));
        }
        Kind::Sparse { name } => {
            let file = extent_file(view, name)?;
            let header = hosted::Header::read(view, file)?;
            info.compressed |= header.stored != Stored::Plain;
            hosted::open(view, file, &header, &mut info.warnings)?
        }
        Kind::Cowd { name } => esx::open_cowd(view, extent_file(view, name)?)?,
        Kind::SeSparse { name } => esx::open_sesparse(view, extent_file(view, name)?)?,
    };
    if sparse.capacity < declared {
        let (what, rule) = ("the capacity of a sparse vmdk extent", "the descriptor says that it is larger");
        return Err(FormatError::Field { what, value: sparse.capacity, rule }.into());
    }
    let len = if last { sparse.capacity } else { declared };
    Ok((Body::Sparse(sparse), len))
}

/// The file of an extent.
fn extent_file(view: View<'_>, name: &str) -> Step<FileIndex> {
    if name.is_empty() {
        let rule = "an extent that is in another file has no name";
        return Err(FormatError::Refused { what: "the vmdk descriptor", rule }.into());
    }
    view.file(name, Role::Extent)
}

fn finish(extents: Vec<Extent>, descriptor: Option<&Descriptor>, mut info: Info) -> Step<Opened> {
    info.cluster_size = extents.iter().find_map(|extent| match &extent.body {
        Body::Sparse(sparse) => Some(sparse.grain),
        _ => None,
    });
    // A disk that begins with another extent may go on at any sector.
    info.aligned_units = extents.len() == 1;
    info.follows_file = !extents.iter().any(|extent| matches!(extent.body, Body::Sparse(_)));
    info.features.extend(descriptor.and_then(|descriptor| descriptor.create_type.clone()));
    let parent = descriptor.and_then(|descriptor| descriptor.parent.as_ref()).map(parent);
    let cid = descriptor.and_then(|descriptor| descriptor.cid).map(id);
    let size = extents.last().map_or(0, |extent| extent.start.saturating_add(extent.len));
    Ok(Opened { layer: Arc::new(Vmdk { size, extents, info }), parent, content_id: cid })
}

/// What the descriptor says of the parent. The hint may be a path of the machine that made the disk: its last
/// component is tried in the image's directory too, and the CID tells whether that is the right file.
fn parent((cid, hint): &(u32, String)) -> ParentRef {
    let path = hint.replace('\\', "/");
    let mut names = vec![path.clone()];
    if let Some(base) = path.rsplit('/').next()
        && !base.is_empty()
        && base != path
    {
        names.push(base.to_owned());
    }
    ParentRef { names, format: Some(Format::Vmdk), check: ParentCheck::Id(id(*cid)) }
}

/// A CID as an identifier.
fn id(cid: u32) -> [u8; 16] {
    u128::from(cid).to_be_bytes()
}

/// A stretch of the disk.
#[derive(Debug)]
struct Extent {
    start: u64,
    len: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Zero,
    NoAccess,
    Flat { file: FileIndex, at: u64 },
    Sparse(Sparse),
}

#[derive(Debug)]
struct Vmdk {
    size: u64,
    extents: Vec<Extent>,
    info: Info,
}

impl Vmdk {
    fn extent(&self, at: u64) -> Result<&Extent> {
        let after = self.extents.partition_point(|extent| extent.start <= at);
        let extent = after.checked_sub(1).and_then(|index| self.extents.get(index));
        extent
            .filter(|extent| at < extent.start.saturating_add(extent.len))
            .ok_or(FormatError::Outside { at })
    }
}

impl Layer for Vmdk {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn locate(&self, at: u64) -> Result<Located> {
        let &Extent { start, len, ref body } = self.extent(at)?;
        let run = |mapping| Ok(Located::Run(Run { start, len, mapping }));
        match body {
            Body::Zero => run(Mapping::Zero),
            Body::NoAccess => run(Mapping::Damaged(Damage::NoAccess)),
            Body::Flat { file, at } => run(Mapping::Data { file: *file, at: *at }),
            Body::Sparse(sparse) => Ok(sparse.locate(at.saturating_sub(start), start, len)),
        }
    }

    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs> {
        let extent = self.extent(table.start)?;
        match &extent.body {
            Body::Sparse(sparse) => sparse.decode(table, bytes, extent.start),
            _ => Err(FormatError::Outside { at: table.start }),
        }
    }
}
