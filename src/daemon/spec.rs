//! What an export is to be: a table of the configuration file, JSON on the control socket, or an argument.

use crate::error::{Error, Result};
use backends::Location;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// An export as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSpec {
    /// What clients call it; absent: the file name without its extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the image is.
    pub location: String,
    /// The image's format; absent: probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The internal snapshot to read; absent: the active disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The file of an archive that is the image; absent: the only one that is named like a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Location prefixes that the image may refer to beyond its own directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_reference: Vec<String>,
    /// SHA-256 fingerprints of the certificates of those who may have it; empty: everybody who can connect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<String>,
    /// Whether all of it is brought into the cache in the background.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub prefetch: bool,
    /// Location of a trace to follow in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch_trace: Option<String>,
    /// File in which what is read is written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_trace: Option<PathBuf>,
}

impl ExportSpec {
    /// What it is called.
    pub(crate) fn name(&self) -> Result<String> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => default_name(&self.location()?.file_name()),
        };
        if name.is_empty() || name.len() > 4096 {
            return Err(Error::usage(format!("{name:?}: an export's name has 1 to 4096 bytes")));
        }
        Ok(name)
    }

    /// Where it is.
    pub(crate) fn location(&self) -> Result<Location> {
        self.location.parse().map_err(|error: backends::Error| Error::usage(error.message))
    }
}

/// The file name without its extension.
fn default_name(file_name: &str) -> String {
    match file_name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => file_name.to_owned(),
    }
}

/// The configuration file of a server.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default, rename = "export")]
    exports: Vec<ExportSpec>,
}

/// The exports that the configuration file `path` names, in its order: tables called `[[export]]`.
pub(crate) fn read_config(path: &Path) -> Result<Vec<ExportSpec>> {
    use std::io::Read;
    let failed =
        |error: std::io::Error| Error::io("the configuration cannot be read", path.display(), &error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_CONFIG).read_to_string(&mut text).map_err(failed)?;
    let config: Config = toml::from_str(&text).map_err(|error| {
        // The error's own text quotes the line, which may hold a signed URL.
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::usage(format!("{}: line {line}: {}", path.display(), error.message()))
    })?;
    for spec in &config.exports {
        let sound = spec.location().and_then(|_| spec.name());
        sound.map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
    }
    Ok(config.exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<ExportSpec>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serve.toml");
        std::fs::write(&path, text).unwrap();
        read_config(&path)
    }

    #[test]
    fn a_configuration_names_exports_in_order() {
        let text = "[[export]]\nlocation = \"/a/b.c.qcow2\"\n[[export]]\nname = \"x\"\nlocation = \"s3://b/k\"\nprefetch = true\n";
        let specs = parsed(text).unwrap();
        let names: Vec<_> = specs.iter().map(|spec| spec.name().unwrap()).collect();
        assert_eq!(names, ["b.c", "x"]);
        assert!(specs[1].prefetch && !specs[0].prefetch);
        assert_eq!(parsed("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_no_secret() {
        for (text, word) in [
            ("[[export]]\nlocation = \"http://h/a?sig=s3cret\"\nfromat = \"raw\"\n", "fromat"),
            ("[[export]]\nlocation = \"http://u:s3cret@h/a\"\n", "password"),
            ("[[export]]\nlocation = \"http://h/a?sig=s3cret\" x\n", "line 2"),
            ("[[export]]\nname = \"\"\nlocation = \"/a\"\n", "1 to 4096"),
            ("[[export]]\nname = \"a\"\n", "location"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.message.contains("serve.toml") && error.message.contains(word), "{error}");
            assert!(!error.message.contains("s3cret"), "{error}");
        }
    }
}
