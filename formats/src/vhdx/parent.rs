//! The parent locator of a differencing vhdx (MS-VHDX 2.6.2.6).

use crate::fields::{Fields, index};
use crate::{Format, FormatError, ParentCheck, ParentRef, Result};
use uuid::Uuid;

/// The only type of locator there is: {B04AEFB7-D19E-4A81-B789-25B8E9445913}.
const VHDX_LOCATOR: Uuid = Uuid::from_u128(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913);

/// Reads the names of the parent, best first, and the identifier that it must have.
pub(crate) fn read(locator: Option<&[u8]>) -> Result<ParentRef> {
    let refused = |rule| FormatError::Refused { what: "the vhdx parent locator", rule };
    let bytes = locator.ok_or(refused("the image has a parent, and no locator for it"))?;
    let fields = Fields::new(bytes, "the vhdx parent locator");
    if fields.array(0)? != VHDX_LOCATOR.to_bytes_le() {
        return Err(refused("its type is not known"));
    }
    let (mut relative, mut absolute, mut linkage) = (None, Vec::new(), None);
    for number in 0..usize::from(fields.le16(18)?) {
        let at = number.saturating_mul(12).saturating_add(20);
        let text = |offset: usize, len: usize| -> Result<String> {
            let (offset, len) =
                (fields.le32(at.saturating_add(offset))?, fields.le16(at.saturating_add(len))?);
            Ok(utf16(fields.slice(index(offset.into()), len.into())?))
        };
        let (key, value) = (text(0, 8)?, text(4, 10)?);
        match key.as_str() {
            "relative_path" => relative = Some(value),
            "absolute_win32_path" | "volume_path" => absolute.push(value),
            "parent_linkage" => linkage = Some(value),
            _ => {}
        }
    }
    let linkage = linkage.as_deref().and_then(|text| Uuid::parse_str(text.trim()).ok());
    let id = linkage.ok_or(refused("it does not say which parent is the right one"))?.to_bytes_le();
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        let name = name.strip_prefix("./").unwrap_or(name);
        let usable = !name.is_empty() && !name.chars().any(char::is_control);
        if usable && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    let paths: Vec<String> =
        relative.into_iter().chain(absolute).map(|path| path.replace('\\', "/")).collect();
    if let Some(first) = paths.first() {
        add(first);
    }
    for path in &paths {
        add(path.rsplit('/').next().unwrap_or_default());
    }
    if names.is_empty() {
        return Err(refused("it has no usable name"));
    }
    Ok(ParentRef { names, format: Some(Format::Vhdx), check: ParentCheck::Id(id) })
}

/// Little-endian UTF-16 up to the first NUL.
fn utf16(bytes: &[u8]) -> String {
    let units =
        bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|&unit| unit != 0);
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
