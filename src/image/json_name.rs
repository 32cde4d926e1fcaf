//! Backing files that a qcow2 names as `json:`, which is how qemu writes a name with options (QEMU, "Device URL Syntax",
//! and the block drivers' options in its QAPI schema).
//!
//! Read is what says no more than which file it is and of which format. The file's name then goes the way of any other,
//! through the gate. Everything else is left as it stands, and the gate refuses it.

use formats::Format;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A name that `json:` stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The file's name, or its URL.
    pub(super) name: String,
    /// Its format, if it is said.
    pub(super) format: Option<Format>,
}

/// What `name` stands for, if it is a `json:` name that is read.
pub(super) fn read(name: &str) -> Option<Named> {
    let object: Map<String, Value> = serde_json::from_str(name.strip_prefix("json:")?).ok()?;
    let mut options = BTreeMap::new();
    flatten("", object, &mut options)?;
    let driver = options.remove("driver");
    let format = driver.as_deref().and_then(format);
    // A format's driver reads from another driver, whose options have a prefix; the other one may stand alone.
    let (prefix, protocol) = match driver {
        Some(driver) if format.is_none() => ("", Some(driver)),
        _ => ("file.", options.remove("file.driver")),
    };
    let mut take = |option: &str| options.remove(&format!("{prefix}{option}"));
    let name = match protocol.as_deref() {
        None | Some("file") => match take("filename")? {
            absolute if absolute.starts_with('/') => absolute,
            // A file's name is nothing but that, whatever stands in front of a colon.
            relative => format!("./{relative}"),
        },
        Some("http" | "https") => take("url")?,
        Some(_) => return None,
    };
    options.is_empty().then_some(Named { name, format })
}

/// The options of an object as qemu counts them: those of an object inside have its name in front. `None` if any is
/// anything but text.
fn flatten(prefix: &str, object: Map<String, Value>, options: &mut BTreeMap<String, String>) -> Option<()> {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::String(text) => options.insert(key, text).is_none().then_some(())?,
            Value::Object(inner) => flatten(&format!("{key}."), inner, options)?,
            _ => return None,
        }
    }
    Some(())
}

/// The format that a driver of qemu reads.
fn format(driver: &str) -> Option<Format> {
    Some(match driver {
        "raw" => Format::Raw,
        "qcow" => Format::Qcow,
        "qcow2" => Format::Qcow2,
        "vpc" => Format::Vhd,
        "vmdk" => Format::Vmdk,
        "vhdx" => Format::Vhdx,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_format_are_read() {
        for (text, name, format) in [
            (r#"{"driver":"qcow2","file":{"driver":"file","filename":"a b"}}"#, "./a b", Some(Format::Qcow2)),
            (r#"{"driver":"vpc","file.driver":"file","file.filename":"s/a"}"#, "./s/a", Some(Format::Vhd)),
            (r#"{"driver":"raw","file":{"filename":"/d/a"}}"#, "/d/a", Some(Format::Raw)),
            (r#"{"file":{"driver":"file","filename":"a"}}"#, "./a", None),
            (r#"{"driver":"file","filename":"json:{}"}"#, "./json:{}", None),
            (r#"{"file":{"driver":"https","url":"https://h/a"}}"#, "https://h/a", None),
            (r#"{"driver":"http","url":"http://h/a"}"#, "http://h/a", None),
        ] {
            let named = Named { name: name.to_owned(), format };
            assert_eq!(read(&format!("json:{text}")), Some(named), "{text}");
        }
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "{}",
            "[]",
            "{",
            r#"{"driver":"nbd","host":"127.0.0.1","port":"1"}"#,
            r#"{"driver":"raw","offset":"512","file":{"driver":"file","filename":"a"}}"#,
            r#"{"driver":"raw","offset":512,"file":{"driver":"file","filename":"a"}}"#,
            r#"{"driver":"file","filename":"a","locking":"off"}"#,
            r#"{"driver":"host_device","filename":"/dev/sda"}"#,
            r#"{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"a"}}}"#,
            r#"{"driver":"blkdebug","image":{"driver":"file","filename":"a"}}"#,
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"a"},"backing":{"driver":"file","filename":"b"}}"#,
            r#"{"driver":"https","url":"https://h/a","sslverify":"off"}"#,
            r#"{"driver":"file","url":"a"}"#,
            r#"{"file.filename":"a","file":{"filename":"b"}}"#,
        ] {
            assert_eq!(read(&format!("json:{text}")), None, "{text}");
        }
        assert_eq!(read(r#"{"driver":"file","filename":"a"}"#), None, "no prefix");
        let deep = format!("json:{}1{}", r#"{"a":"#.repeat(2000), "}".repeat(2000));
        assert_eq!(read(&deep), None);
    }
}
