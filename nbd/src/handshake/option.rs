//! The data of options.
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

use crate::wire::Cursor;
use crate::wire::consts::*;

bitflags::bitflags! {
    /// The information a client asks for. `NBD_INFO_EXPORT` always comes; unknown kinds are ignored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Wanted: u8 {
        const NAME = 1;
        const DESCRIPTION = 2;
        const BLOCK_SIZE = 4;
    }
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug)]
pub(super) struct Info {
    pub(super) name: String,
    pub(super) wanted: Wanted,
}

impl Info {
    /// `None` unless the data are exactly a name and a counted list.
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(data);
        let name = name(cursor.counted()?)?;
        let count = cursor.u16()?;
        let mut wanted = Wanted::empty();
        for _ in 0..count {
            wanted |= match cursor.u16()? {
                INFO_NAME => Wanted::NAME,
                INFO_DESCRIPTION => Wanted::DESCRIPTION,
                INFO_BLOCK_SIZE => Wanted::BLOCK_SIZE,
                _ => Wanted::empty(),
            };
        }
        cursor.0.is_empty().then_some(Self { name, wanted })
    }
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug)]
pub(super) struct MetaQuery {
    pub(super) name: String,
    /// Contexts asked for by their whole name.
    exact: Contexts,
    /// Contexts whose namespace was asked for.
    wild: Contexts,
    /// Whether nothing was asked for.
    empty: bool,
}

impl MetaQuery {
    /// `None` unless the data are exactly a name and a counted list of queries. A query for what is not known here
    /// selects nothing.
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(data);
        let name = name(cursor.counted()?)?;
        let count = cursor.u32()?;
        let (mut exact, mut wild) = (Contexts::empty(), Contexts::empty());
        for _ in 0..count {
            let query = std::str::from_utf8(cursor.counted()?).ok()?;
            for (context, known) in Contexts::NAMES {
                if query == known {
                    exact |= context;
                } else if query.ends_with(':') && known.starts_with(query) {
                    wild |= context;
                }
            }
        }
        cursor.0.is_empty().then_some(Self { name, exact, wild, empty: count == 0 })
    }

    /// The contexts it selects. Namespaces, and no query at all, mean something in a list only.
    pub(super) fn select(&self, set: bool) -> Contexts {
        match (set, self.empty) {
            (true, _) => self.exact,
            (false, true) => Contexts::all(),
            (false, false) => self.exact | self.wild,
        }
    }
}

/// An export name: UTF-8 of at most [`MAX_STRING`] bytes without NUL.
pub(super) fn name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    (name.len() <= MAX_STRING && !name.contains('\0')).then(|| name.to_owned())
}

/// As much of `text` as a string of the protocol may hold.
pub(super) fn shorten(text: &str) -> &str {
    let end = text.floor_char_boundary(MAX_STRING);
    text.get(..end).unwrap_or_default()
}
