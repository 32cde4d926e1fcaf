//! Where a differencing disk says that its parent is: the parent locators and the parent's name (Virtual Hard Disk
//! Image Format 1.0, "Dynamic Disk Header Format").

use crate::fields::Fields;
use crate::known::{Step, View};
use crate::probe::IMAGE;
use crate::{Format, FormatError, ParentCheck, ParentRef, Result};

/// Longest locator that is read: paths are at most 64 KiB of UTF-16.
const LOCATOR_BYTES: u32 = 64 << 10;

/// Reads the parent's names. `header` is the dynamic disk header, `id` the parent's identifier.
///
/// Names relative to the image come first. Absolute ones are from the machine that made the disk: their last
/// component is tried in the image's directory, and only then the whole.
pub(crate) fn read(view: View<'_>, header: &[u8], id: [u8; 16]) -> Step<ParentRef> {
    let fields = Fields::new(header, "the vhd dynamic disk header");
    let mut names = Names::default();
    for slot in 0..8usize {
        let at = slot.saturating_mul(24).saturating_add(576);
        let code: [u8; 4] = fields.array(at)?;
        let len = fields.be32(at.saturating_add(8))?;
        let offset = fields.be64(at.saturating_add(16))?;
        if !matches!(&code, b"W2ru" | b"W2ku" | b"MacX" | b"Wi2r" | b"Wi2k") || len == 0 {
            continue;
        }
        if len > LOCATOR_BYTES {
            let (what, rule) = ("the length of a vhd parent locator", "it must be at most 64 KiB");
            return Err(FormatError::Field { what, value: len.into(), rule }.into());
        }
        let bytes = view.exact(IMAGE, offset, len.into(), "vhd parent locator")?;
        match &code {
            b"W2ru" | b"W2ku" => names.add_windows(&utf16(bytes, u16::from_le_bytes)),
            b"MacX" => names.add_url(bytes),
            _ => names.add_windows(&String::from_utf8_lossy(bytes)),
        }
    }
    names.add_windows(&utf16(fields.slice(64, 512)?, u16::from_be_bytes));
    names.finish(id).map_err(Into::into)
}

/// Names found so far, by how good they are.
#[derive(Default)]
struct Names {
    relative: Vec<String>,
    base: Vec<String>,
    absolute: Vec<String>,
}

impl Names {
    /// A path as Windows writes it.
    fn add_windows(&mut self, path: &str) {
        let path = path.trim_end_matches('\0').replace('\\', "/");
        let drive = matches!(path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
        self.add(&path, drive || path.starts_with('/'));
    }

    /// A `file:` URL in UTF-8, `%`-encoded. Xen writes relative ones as `file://./name`.
    fn add_url(&mut self, bytes: &[u8]) {
        let url = String::from_utf8_lossy(bytes);
        let url = url.trim_end_matches('\0');
        let Some(path) = url.strip_prefix("file://") else { return };
        let path = path.strip_prefix("localhost/").map_or_else(|| path.to_owned(), |path| format!("/{path}"));
        let path = percent_decoded(&path);
        self.add(&path, path.starts_with('/'));
    }

    fn add(&mut self, path: &str, absolute: bool) {
        if path.is_empty() {
            return;
        }
        let base = path.rsplit('/').next().unwrap_or(path);
        let relative = path.strip_prefix("./").unwrap_or(path);
        match absolute {
            true => self.absolute.push(path.to_owned()),
            false => self.relative.push(relative.to_owned()),
        }
        if !base.is_empty() && base != ".." {
            self.base.push(base.to_owned());
        }
    }

    fn finish(self, id: [u8; 16]) -> Result<ParentRef> {
        let mut names: Vec<String> = Vec::new();
        for name in [self.relative, self.base, self.absolute].into_iter().flatten() {
            if !names.contains(&name) && !name.chars().any(char::is_control) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return Err(FormatError::Refused {
                what: "the vhd's parent",
                rule: "no usable name for it is recorded",
            });
        }
        // XenServer's libvhd makes disks over raw ones, and records no identifier of a parent that has none.
        let (format, check) = match id == [0; 16] {
            true => (Format::Raw, ParentCheck::None),
            false => (Format::Vhd, ParentCheck::Id(id)),
        };
        Ok(ParentRef { names, format: Some(format), check })
    }
}

/// UTF-16 up to the first NUL.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).take_while(|&unit| unit != 0);
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// `text` with `%XX` replaced by the byte it stands for.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = tail.get(if code.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
