//! A small blocking driver: opens a chain out of files that are at hand and reads the guest's bytes.
//!
//! It exists for tests, examples, fuzzing and tools that have no use for an asynchronous one, and shows all that a
//! driver has to do: answer [`Ask`]s, decide which names an image may open (here: those in a [`Directory`]), compare
//! parents, keep decoded tables, and turn extents into bytes.

use crate::{
    Ask, Chain, Extent, FileIndex, FormatError, Inflater, Kind, Layer, Opened, Opening, Options, ParentCheck,
    ParentRef, Progress, Resolved, Runs, TableCache, TableRef, limits,
};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

/// Bytes that can be read at any offset.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from offset `at`; the range lies inside the file.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        crate::fields::length(Vec::len(self))
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = crate::fields::index(at);
        let part = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The files that images may name, by name: the gate. Names are compared as they stand in the image, after a leading
/// `file:` and `./` are taken off; nothing else about a name is interpreted.
#[derive(Clone, Default)]
pub struct Directory(BTreeMap<String, Arc<dyn ReadAt>>);

impl Directory {
    /// No files.
    pub fn new() -> Self {
        Directory::default()
    }

    /// Adds a file.
    pub fn add(&mut self, name: &str, file: impl ReadAt + 'static) {
        self.0.insert(name.to_owned(), Arc::new(file));
    }

    /// The file of that name.
    fn get(&self, name: &str) -> Option<Arc<dyn ReadAt>> {
        let name = name.strip_prefix("file:").unwrap_or(name);
        let name = name.strip_prefix("./").unwrap_or(name);
        self.0.get(name).map(Arc::clone)
    }
}

/// Why the driver cannot open or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Reading a file failed.
    #[error("reading a file of the image failed")]
    Io(#[from] io::Error),
    /// A name in an image leads to no file of the directory.
    #[error("the image names {0:?}, which is not in its directory")]
    Refused(String),
    /// An image is, through the names in it, its own parent or extent.
    #[error("the image refers to itself through {0:?}")]
    Loop(String),
    /// The parent found by name is not the one that the image was made from.
    #[error("{0:?} is not the parent that the image was made from")]
    WrongParent(String),
}

/// Decoded tables by layer and place. All of them are kept: the driver is for small work.
#[derive(Default)]
struct Tables(HashMap<(usize, TableRef), Arc<Runs>>);

impl TableCache for Tables {
    fn table(&self, layer: usize, table: &TableRef) -> Option<Arc<Runs>> {
        self.0.get(&(layer, *table)).map(Arc::clone)
    }
}

/// The files of one layer, by [`FileIndex`].
type Files = Vec<Arc<dyn ReadAt>>;

/// An open chain.
pub struct Disk {
    chain: Chain,
    files: Vec<Files>,
    tables: Tables,
    inflater: Inflater,
    unit: Option<(usize, crate::Unit, Vec<u8>)>,
}

impl Disk {
    /// Opens `name` in `directory`, and every file that it needs.
    pub fn open(directory: &Directory, name: &str, options: Options) -> Result<Self, Error> {
        let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
        let mut files: Vec<Files> = Vec::new();
        let top = directory.get(name).ok_or_else(|| Error::Refused(name.to_owned()))?;
        let mut next = Some((top, options, ParentCheck::None, name.to_owned()));
        while let Some((file, options, check, name)) = next.take() {
            if layers.len() >= limits::CHAIN_DEPTH {
                let (depth, limit) = (layers.len().saturating_add(1), limits::CHAIN_DEPTH);
                return Err(FormatError::ChainDepth { depth, limit }.into());
            }
            let (opened, own) = open_layer(directory, file, options, &name)?;
            if let ParentCheck::Id(id) = check
                && opened.content_id != Some(id)
            {
                return Err(Error::WrongParent(name));
            }
            layers.push(opened.layer);
            files.push(own);
            if let Some(parent) = opened.parent {
                next = Some(find_parent(directory, &parent, &files)?);
            }
        }
        let chain = Chain::new(layers)?;
        Ok(Disk { chain, files, tables: Tables::default(), inflater: Inflater::new(), unit: None })
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The extent that covers guest offset `at`, at most `max` bytes of it; tables are read as needed.
    pub fn extent(&mut self, at: u64, max: u64) -> Result<Extent, Error> {
        loop {
            match self.chain.resolve(at, max, &self.tables)? {
                Resolved::Extent(extent) => return Ok(extent),
                Resolved::Table { layer, table } => {
                    let file = self.file(layer, table.file)?;
                    let bytes = read_upto(file.as_ref(), table.at, table.len)?;
                    let layers = self.chain.layers();
                    let runs = layers.get(layer).ok_or(FormatError::Outside { at })?.decode(table, &bytes)?;
                    self.tables.0.insert((layer, table), Arc::new(runs));
                }
            }
        }
    }

    /// Fills `buf` with the guest's bytes from `at` on; the range must lie inside the disk.
    pub fn read(&mut self, mut at: u64, mut buf: &mut [u8]) -> Result<(), Error> {
        while !buf.is_empty() {
            let extent = self.extent(at, crate::fields::length(buf.len()))?;
            let Some((part, rest)) = buf.split_at_mut_checked(crate::fields::index(extent.len)) else {
                return Err(FormatError::Outside { at }.into());
            };
            self.fill(&extent, part)?;
            buf = rest;
            at = at.saturating_add(extent.len);
        }
        Ok(())
    }

    fn fill(&mut self, extent: &Extent, part: &mut [u8]) -> Result<(), Error> {
        part.fill(0);
        match extent.kind {
            Kind::Zero | Kind::Unallocated => {}
            Kind::Data { file, at } => {
                let file = self.file(extent.layer, file)?;
                let stored = crate::fields::index(file.len().saturating_sub(at)).min(part.len());
                if let Some(part) = part.get_mut(..stored) {
                    file.read_at(at, part)?;
                }
            }
            Kind::Compressed(unit) => {
                if !matches!(&self.unit, Some((layer, known, _)) if (*layer, *known) == (extent.layer, unit))
                {
                    let file = self.file(extent.layer, unit.file)?;
                    let stored = read_upto(file.as_ref(), unit.at, unit.len)?;
                    let clear = self.inflater.decode(unit.codec, &stored, unit.decoded)?;
                    self.unit = Some((extent.layer, unit, clear));
                }
                let skip = crate::fields::index(extent.start.saturating_sub(unit.guest));
                let clear = self.unit.as_ref().and_then(|(.., clear)| clear.get(skip..));
                let clear = clear.and_then(|clear| clear.get(..part.len()));
                part.copy_from_slice(clear.ok_or(FormatError::Outside { at: extent.start })?);
            }
        }
        Ok(())
    }

    fn file(&self, layer: usize, file: FileIndex) -> Result<Arc<dyn ReadAt>, Error> {
        let file = self.files.get(layer).and_then(|files| files.get(usize::from(file.0)));
        file.map(Arc::clone).ok_or(Error::Format(FormatError::Outside { at: 0 }))
    }
}

/// Opens one layer with its own files.
fn open_layer(
    directory: &Directory,
    file: Arc<dyn ReadAt>,
    options: Options,
    image: &str,
) -> Result<(Opened, Files), Error> {
    let mut opening = Opening::new(file.len(), options);
    let mut files: Files = vec![file];
    loop {
        match opening.poll()? {
            Progress::Done(opened) => return Ok((opened, files)),
            Progress::Need(Ask::Bytes { file, at, len }) => {
                let file = files.get(usize::from(file.0)).ok_or(FormatError::Outside { at })?;
                opening.supply_bytes(read_upto(file.as_ref(), at, len)?);
            }
            Progress::Need(Ask::File { name, .. }) => {
                let file = directory.get(&name).ok_or_else(|| Error::Refused(name.clone()))?;
                if files.first().is_some_and(|image| Arc::ptr_eq(image, &file)) {
                    return Err(Error::Loop(image.to_owned()));
                }
                opening.supply_file(file.len());
                files.push(file);
            }
        }
    }
}

type Next = (Arc<dyn ReadAt>, Options, ParentCheck, String);

/// The first of the parent's names that leads to a file.
fn find_parent(directory: &Directory, parent: &ParentRef, open: &[Files]) -> Result<Next, Error> {
    let found = parent.names.iter().find_map(|name| Some((directory.get(name)?, name)));
    let Some((file, name)) = found else {
        return Err(Error::Refused(parent.names.first().cloned().unwrap_or_default()));
    };
    if open.iter().filter_map(|files| files.first()).any(|known| Arc::ptr_eq(known, &file)) {
        return Err(Error::Loop(name.clone()));
    }
    let options = Options { format: parent.format, ..Options::default() };
    Ok((file, options, parent.check, name.clone()))
}

/// Bytes `at..at + len`, as many as the file has.
fn read_upto(file: &dyn ReadAt, at: u64, len: u32) -> io::Result<Vec<u8>> {
    let len = file.len().saturating_sub(at).min(len.into());
    let mut bytes = vec![0; crate::fields::index(len)];
    file.read_at(at, &mut bytes)?;
    Ok(bytes)
}
