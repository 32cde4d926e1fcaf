//! What an opener knows of an image so far, and how it stops where something is missing.

use crate::fields::{index, length};
use crate::{Ask, FileIndex, FormatError, Role, limits};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Why an opener did not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It needs more first: what is in [`Known::wanted`].
    Need,
    /// It never will.
    Failed(FormatError),
}

impl From<FormatError> for Stop {
    fn from(error: FormatError) -> Self {
        Stop::Failed(error)
    }
}

/// The result of an opener, or a part of one.
pub(crate) type Step<T> = std::result::Result<T, Stop>;

/// A root table, kept in the byte order of the file and shared with what was read: an image with a table of the
/// largest size costs its memory once.
#[derive(Clone, Default)]
pub(crate) struct Table {
    piece: Arc<Vec<u8>>,
    skip: usize,
    len: usize,
}

impl Table {
    /// The table's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.skip.checked_add(self.len).and_then(|end| self.piece.get(self.skip..end)).unwrap_or_default()
    }

    /// Entry `at` of a table of `N`-byte entries.
    pub(crate) fn entry<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.bytes().as_chunks::<N>().0.get(index(at)).copied()
    }
}

impl From<Vec<u8>> for Table {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Table { piece: Arc::new(bytes), skip: 0, len }
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({} bytes)", self.len)
    }
}

#[derive(Debug)]
struct File {
    name: String,
    role: Option<Role>,
    len: u64,
}

/// Files and byte ranges that the caller has supplied.
#[derive(Debug)]
pub(crate) struct Known {
    files: Vec<File>,
    pieces: BTreeMap<(FileIndex, u64), Arc<Vec<u8>>>,
    total: u64,
    asks: u32,
    /// What an opener looked for and did not find, in order; the caller is asked for one after the other.
    wanted: RefCell<VecDeque<Ask>>,
    /// What went out to the caller and has not been answered.
    pending: Option<Ask>,
}

impl Known {
    /// File 0 is `len` bytes long; nothing of it has been read.
    pub(crate) fn new(len: u64) -> Self {
        let files = vec![File { name: String::new(), role: None, len }];
        Known { files, pieces: BTreeMap::new(), total: 0, asks: 0, wanted: RefCell::default(), pending: None }
    }

    /// Runs `opener` as far as what is known allows: its result, or the need that now goes out to the caller. An
    /// opener that looked for several things before it stopped runs again when all of them have been supplied.
    pub(crate) fn run<T>(
        &mut self,
        opener: impl FnOnce(View<'_>) -> Step<T>,
    ) -> Result<std::result::Result<T, Ask>, FormatError> {
        if self.wanted.get_mut().is_empty() {
            match opener(View::new(self)) {
                Ok(done) => return Ok(Ok(done)),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Need) => {}
            }
        }
        let ask = self.wanted.get_mut().pop_front().ok_or_else(too_many_asks)?;
        self.count(&ask)?;
        self.pending = Some(ask.clone());
        Ok(Err(ask))
    }

    /// The answer to the last need, if that was for bytes. A shorter one means that the file is not as long as was
    /// said.
    pub(crate) fn supply_bytes(&mut self, bytes: Vec<u8>) {
        if let Some(Ask::Bytes { file, at, len }) = self.pending.take() {
            self.add_bytes(file, at, len, bytes);
        }
    }

    /// The answer to the last need, if that was for a file.
    pub(crate) fn supply_file(&mut self, len: u64) {
        if let Some(Ask::File { name, role, .. }) = self.pending.take() {
            self.files.push(File { name, role: Some(role), len });
        }
    }

    /// Counts a need that goes out to the caller; refuses when an image has too many of them.
    fn count(&mut self, ask: &Ask) -> Result<(), FormatError> {
        self.asks = self.asks.saturating_add(1);
        if let Ask::Bytes { len, .. } = ask {
            self.total = self.total.saturating_add(u64::from(*len));
        }
        if self.asks > limits::OPEN_ASKS {
            return Err(too_many_asks());
        }
        if self.total > limits::OPEN_BYTES {
            let (what, limit) = ("the metadata that has to be read to open the image", limits::OPEN_BYTES);
            return Err(FormatError::TooLarge { what, value: self.total, limit });
        }
        Ok(())
    }

    fn add_bytes(&mut self, file: FileIndex, at: u64, asked: u32, bytes: Vec<u8>) {
        let len = length(bytes.len());
        if len < u64::from(asked)
            && let Some(file) = self.files.get_mut(usize::from(file.0))
        {
            file.len = file.len.min(at.saturating_add(len));
        }
        self.pieces.insert((file, at), Arc::new(bytes));
    }

    /// Stops for want of what `ask` asks for.
    fn want<T>(&self, ask: Ask) -> Step<T> {
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.contains(&ask) {
            wanted.push_back(ask);
        }
        Err(Stop::Need)
    }

    /// The piece that holds `at..at + len`, and where in it that begins. `len` is not 0.
    fn find(&self, file: FileIndex, at: u64, len: u64) -> Step<(&Arc<Vec<u8>>, usize)> {
        for (&(_, start), piece) in self.pieces.range((file, 0)..=(file, at)).rev() {
            let skip = at.saturating_sub(start);
            if skip.saturating_add(len) <= length(piece.len()) {
                return Ok((piece, index(skip)));
            }
        }
        let len = u32::try_from(len).map_err(|_| too_many_asks())?;
        self.want(Ask::Bytes { file, at, len })
    }
}

/// What an opener sees of [`Known`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    known: &'a Known,
}

impl<'a> View<'a> {
    /// A view of all that is known.
    pub(crate) fn new(known: &'a Known) -> Self {
        View { known }
    }

    /// Length of a file in bytes.
    pub(crate) fn len(self, file: FileIndex) -> u64 {
        self.known.files.get(usize::from(file.0)).map_or(0, |file| file.len)
    }

    /// Bytes `at..at + len` of `file`, as many of them as the file has.
    pub(crate) fn upto(self, file: FileIndex, at: u64, len: u64) -> Step<&'a [u8]> {
        let len = len.min(self.len(file).saturating_sub(at));
        if len == 0 {
            return Ok(&[]);
        }
        let (piece, skip) = self.known.find(file, at, len)?;
        Ok(skip.checked_add(index(len)).and_then(|end| piece.get(skip..end)).unwrap_or_default())
    }

    /// Bytes `at..at + len` of `file`, which hold the structure called `what`; an error if the file ends inside.
    pub(crate) fn exact(self, file: FileIndex, at: u64, len: u64, what: &'static str) -> Step<&'a [u8]> {
        self.inside(file, at, len, what)?;
        self.upto(file, at, len)
    }

    /// Like [`exact`](Self::exact), for a table that is kept.
    pub(crate) fn table(self, file: FileIndex, at: u64, len: u64, what: &'static str) -> Step<Table> {
        self.inside(file, at, len, what)?;
        if len == 0 {
            return Ok(Table::default());
        }
        let (piece, skip) = self.known.find(file, at, len)?;
        Ok(Table { piece: Arc::clone(piece), skip, len: index(len) })
    }

    /// Checks that `at..at + len` lies inside `file` and is not larger than any one structure may be.
    pub(crate) fn inside(
        self,
        file: FileIndex,
        at: u64,
        len: u64,
        what: &'static str,
    ) -> Result<(), FormatError> {
        let limit = u64::from(limits::ROOT_BYTES);
        if len > limit {
            return Err(FormatError::TooLarge { what, value: len, limit });
        }
        let file_len = self.len(file);
        match at.checked_add(len) {
            Some(end) if end <= file_len => Ok(()),
            _ => Err(FormatError::Truncated { what, at, len, file_len }),
        }
    }

    /// The file that the image calls `name`.
    pub(crate) fn file(self, name: &str, role: Role) -> Step<FileIndex> {
        let files = &self.known.files;
        let known = files.iter().position(|file| file.role == Some(role) && file.name == name);
        if let Some(index) = known.and_then(|known| u16::try_from(known).ok()) {
            return Ok(FileIndex(index));
        }
        // Files are numbered in the order in which they are supplied, which is the order of the needs.
        let mut next = files.len();
        for ask in self.known.wanted.borrow().iter() {
            match ask {
                Ask::File { name: other, role: for_what, .. } if other == name && *for_what == role => {
                    return Err(Stop::Need);
                }
                Ask::File { .. } => next = next.saturating_add(1),
                Ask::Bytes { .. } => {}
            }
        }
        let index = u16::try_from(next).map(FileIndex).map_err(|_| too_many_asks())?;
        self.known.want(Ask::File { name: name.to_owned(), role, index })
    }
}

/// What an image is told that keeps asking.
fn too_many_asks() -> FormatError {
    FormatError::Refused {
        what: "the image",
        rule: "opening it takes more reads or files than any sound image needs",
    }
}
