//! The files that records of an SR are dumped to and restored from.

use crate::error::{Error, Result};
use crate::output;
use backends::Location;
use serde::Serialize;
use sr::Dump;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The longest dump that is read. Ten thousand VDIs take 5 MiB.
const LONGEST: u64 = 1 << 30;

/// Writes the dump to the file, wholly or not at all, or to stdout. What is secret in locations is left out. With `json`
/// it is said what was written where; the dump itself, on stdout, is a JSON document of its own.
pub(super) fn write(mut dump: Dump, file: Option<&Path>, json: bool) -> Result<()> {
    let templates: Vec<(Uuid, String)> =
        dump.templates().map(|(uuid, location)| (uuid, location.to_owned())).collect();
    for (uuid, recorded) in templates {
        let shown = recorded.parse::<Location>().map_or_else(|_| "?".into(), |location| location.to_string());
        if shown != recorded {
            dump.withhold(uuid, shown);
        }
    }
    let text = dump.to_text();
    let Some(file) = file else { return output::line(text.trim_end()) };
    // Beside the file, so that it is renamed within one file system.
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let save = || -> io::Result<()> {
        let mut new = File::create(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    };
    save().map_err(|e| {
        let _ = fs::remove_file(&beside);
        Error::failed(format!("cannot write {}: {e}", file.display()))
    })?;
    match json {
        true => output::json(&Written { file, bytes: text.len() }),
        false => Ok(()),
    }
}

/// What is said of a dump that was written to a file.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    bytes: usize,
}

/// Reads a dump, and completes it with `TEMPLATE=LOCATION`.
pub(super) fn read(file: &Path, locations: &[String]) -> Result<Dump> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().take(LONGEST).read_to_end(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(LONGEST).read_to_end(&mut text))
    };
    read.map_err(|e| Error::failed(format!("cannot read {}: {e}", file.display())))?;
    let mut dump = Dump::parse(&text)?;
    for given in locations {
        let (template, location) = given.split_once('=').ok_or_else(|| {
            Error::usage("--location wants the UUID of a template, an equals sign, and its location")
        })?;
        let template = template
            .parse::<Uuid>()
            .map_err(|_| Error::usage(format!("--location: '{template}' is no UUID of a template")))?;
        let location = location.parse::<Location>().map_err(|e| Error::usage(e.message))?;
        let location = location.absolute()?;
        dump.locate(template, location.secret_form())?;
    }
    Ok(dump)
}
